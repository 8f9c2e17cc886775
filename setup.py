"""Packaging: the metadata is in settings.ini, nbdev's settings are in pyproject.toml."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=["="], inline_comment_prefixes=None)
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def lines(key):
    """The non-empty lines of one setting."""
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip() and not line.strip().startswith("#")]


class BuildWithPipelines(build_py):
    """Ship the papermill templates inside the wheel, so that `email-trm run` works without a checkout."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = Path(self.build_lib) / "email_trm" / "pipelines"
        target.mkdir(parents=True, exist_ok=True)
        for notebook in Path("nbs/pipelines").glob("*.ipynb"):
            shutil.copy2(notebook, target / notebook.name)


extras = {key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")}

setup(
    name=cfg["name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    classifiers=["Programming Language :: Python :: 3.11", "Intended Audience :: Developers", "Natural Language :: English"],
    packages=find_packages(include=["email_trm", "email_trm.*"]),
    package_data={"email_trm": ["py.typed", "evaluation/*.j2", "serving/page.*", "widgets/*.js", "widgets/*.css",
        "models/default/*", "models/actions/*", "rl/recipes/*/*.yaml"]},
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": lines("console_scripts")},
    cmdclass={"build_py": BuildWithPipelines},
)
