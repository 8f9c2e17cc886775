"""For `make lab`: clean a notebook each time it is saved, so that diffs hold only what a person changed."""
from nbdev.clean import clean_jupyter

c = get_config()  # noqa: F821 - Jupyter defines it
c.ServerApp.root_dir = "."
c.FileContentsManager.pre_save_hook = lambda model, path, contents_manager, **kwargs: clean_jupyter(path=path, model=model)
