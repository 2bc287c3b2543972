# vlm-agent: `make quick` and `make test` set everything up by themselves.

VENV  := .venv
BIN   := $(VENV)/bin
MODEL :=
RECIPE := full
ARGS  :=
NAME  := starter
SHIPPED := vlm_agent/shipped/policies/$(NAME)
LAUNCH_0 := --config_file accelerate_configs/cpu.yaml --num_cpu_threads_per_process $(shell nproc)

ifeq ($(MODEL),tiny)
ROAD := --config recipes/full_tiny.yaml
else
ROAD := --config recipes/$(RECIPE).yaml $(addprefix --model_name_or_path ,$(MODEL))
endif

.DEFAULT_GOAL := help
.PHONY: help quick full starter results study sabotage group worlds generalisation test faults audit check install system browser format lock wheel bench plan gpu soak docs notebook newcomer interop picture clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

quick: install system  ## the main job in minutes: 2,000 words of PPO with the tiny policy
	$(BIN)/accelerate launch --quiet $(LAUNCH_0) -m vlm_agent.train --config recipes/quick.yaml $(ARGS)

full: install system  ## demonstrations, warm start, 100,000 words of PPO, test; MODEL=tiny, MODEL=/a/folder, RECIPE=full_4bit
	$(BIN)/vlm-agent road $(ROAD) $(ARGS)

starter: install system  ## make a policy that comes with the package again; NAME=beginner for another one
	$(BIN)/vlm-agent demos --config recipes/$(NAME).yaml
	$(BIN)/accelerate launch --quiet $(LAUNCH_0) -m vlm_agent.sft --config recipes/$(NAME).yaml $(ARGS)
	rm -rf $(SHIPPED) && cp -r checkpoints/$(NAME)_final $(SHIPPED)
	rm $(SHIPPED)/trainer_state.json
	$(BIN)/vlm-agent seal $(SHIPPED)

results: install system  ## from nothing to the README's results, stage by stage (hours; goes on where it was)
	$(BIN)/vlm-agent results $(ARGS)

study: install system  ## what the quick recipe's 2,000 words bring, over 5 seeds (half an hour)
	$(BIN)/vlm-agent quick_study $(ARGS)

worlds: install system  ## train and measure in MiniGrid and Fetch, stage by stage (hours; goes on where it was)
	$(BIN)/vlm-agent worlds $(ARGS)

group: install system  ## GRPO against PPO on a sparse reward, 50,000 words each (an hour and a half)
	$(BIN)/vlm-agent group_study $(ARGS)

generalisation: install system  ## policies for scenes that change, stage by stage (a day; goes on where it was)
	$(BIN)/vlm-agent generalisation $(ARGS)

test: install system browser  ## the tests; ARGS=--long: those that take minutes, too
	$(BIN)/pytest -n 2 $(ARGS)

faults: install system browser  ## make everything go wrong that can, the long way, and see what comes of it
	$(BIN)/python -m tests.faults --json recipes/results/faults.json $(ARGS)

audit: install  ## ask for known vulnerabilities of the pinned packages; says so where it cannot
	@$(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/audit pip-audit
	@PYTHONPATH=$(VENV)/audit $(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off --strict

check: install  ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	$(BIN)/mypy --no-error-summary
	$(BIN)/hadolint Dockerfile vlm_agent/sharing/assets/Dockerfile

install: $(VENV)/.installed  ## make .venv with the pinned packages, and nothing else

# torch is asked for by its exact version: pip then takes its CPU build from a registry that has one.
$(VENV)/.installed: pyproject.toml constraints.txt
	@supported() { $$1 -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }; \
	if [ -z "$(PYTHON)" ] && supported $(BIN)/python; then exit 0; fi; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3); do \
	  if supported $$python; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "vlm-agent needs Python 3.11 or 3.12, and $(or $(PYTHON),python3) is neither; name one with PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	if ! command -v cc >/dev/null && ! command -v gcc >/dev/null; then \
	  echo "a C compiler is needed (robosuite's evdev is built from source); on Debian or Ubuntu: apt-get install gcc libc6-dev" >&2; exit 2; \
	fi; \
	echo "installing into $(VENV) with $$($$found --version) (a few minutes)" && \
	$$found -m venv --clear $(VENV)
	@if [ -n "$(HASHED)" ]; then \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock; \
	fi
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 --constraint constraints.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@touch $@

system: install  ## check the rendering libraries; as root, install what is missing
	@$(BIN)/vlm-agent doctor --install

browser: install  ## a Chromium for tests of pages; as root, install Debian's
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update && apt-get install --yes --no-install-recommends chromium; } >$(VENV)/browser.log 2>&1 \
	  || echo "Chromium could not be installed ($(VENV)/browser.log): tests of pages are skipped"; \
	else echo "no Chromium here (Debian: apt-get install chromium): tests of pages are skipped"; fi

newcomer: install  ## a fresh clone and environment, and every command of the README (2 hours; ARGS=--short: 30 minutes)
	$(BIN)/python -m tests.newcomer $(ARGS)

interop: install system  ## LeRobot and trackio, in environments of their own, read what is written for them
	@[ -d $(VENV)/lerobot ] || $(BIN)/python -m venv $(VENV)/lerobot
	@$(VENV)/lerobot/bin/pip install --quiet --disable-pip-version-check lerobot==0.4.4
	@$(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/trackio --upgrade trackio "numpy<2"
	LEROBOT=$(CURDIR)/$(VENV)/lerobot/bin/python TRACKIO=$(CURDIR)/$(VENV)/trackio $(BIN)/pytest -k "lerobots_own_loader or trackio"

sabotage: install  ## break the code in twelve ways, and see that a test notices each (10 minutes)
	$(BIN)/python -m tests.sabotage

format: install  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install  ## write the installed versions into constraints.txt, and their files' hashes into requirements.lock
	@{ sed -n 1p constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > $(VENV)/constraints
	@mv $(VENV)/constraints constraints.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/uv uv
	@{ echo "# The files of constraints.txt, but torch's, which differ between machines. Made by: make lock"; \
	  grep -v '^torch==' constraints.txt | $(VENV)/uv/bin/uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate \
	  --python-version 3.11 --no-emit-index-url - ; } > $(VENV)/requirements && mv $(VENV)/requirements requirements.lock

wheel: install  ## build dist/vlm_agent-*.whl
	rm -rf build  # what an earlier build left there would be in this one
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

bench: install system  ## measure world and policy against the usual ways (20 minutes)
	for name in camera env control pool scoring update loop play; do \
	  $(BIN)/vlm-agent bench $$name --json recipes/results/bench_$$name.json || exit; done
	$(BIN)/vlm-agent bench pool --frame_size 112 --json recipes/results/bench_pool_112.json

plan: install system  ## measure what plans are made of, and run three recipes beside theirs (15 minutes)
	$(BIN)/vlm-agent plan --measure --json recipes/results/plan_constants.json
	$(BIN)/vlm-agent plan --check --json recipes/results/plan.json

gpu: install  ## on a GPU: what the real model's size reaches there, beside plans (8 minutes)
	$(BIN)/vlm-agent plan --measure_gpu --json recipes/results/gpu.json

soak: install system  ## 20,000 words in one worker, and 20 killed parents (10 minutes)
	$(BIN)/vlm-agent bench soak --frame_size 112 --json recipes/results/soak.json
	$(BIN)/pytest -k outlives --rounds 5

docs: install  ## the documents as a site, in site/; strict
	$(BIN)/vlm-agent keys --output docs/keys.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

notebook: install system  ## run docs/first-run.ipynb from its first cell to its last, and keep what it shows
	@$(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/notebook --upgrade nbclient ipykernel
	JUPYTER_PATH=$(VENV)/notebook/share/jupyter PYTHONPATH=$(VENV)/notebook $(BIN)/python -c \
	  'from nbclient.cli import main; main()' --inplace --timeout=1800 docs/first-run.ipynb

picture: install system  ## make the pictures of README and docs again
	$(BIN)/vlm-agent show --policy warm_start --split test --number 3 --solved --size 224 --fps 6 --output docs/pictures/robot.gif
	$(BIN)/vlm-agent show --directions Panda --output docs/pictures/directions.png

clean:  ## remove .venv and caches, never runs or checkpoints
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
