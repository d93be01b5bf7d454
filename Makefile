# `make` sets up a fresh machine and trains V9 on the embedded corpus; `make test` tests it.
# `make defconfig-NAME` chooses a configuration of the reference, which `make` and `make check` then run and check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready


# .config remembers the chosen file, and the variables that were given with the choice; those given to `make` win
VARIABLES := GPT2_MAX_ITERS MAX_ITERS GPT2_MAX_TIME TRACKER TRACKER_PROJECT TRACKER_RUN_NAME BASELINE DRY_RUN
CHOSEN := $(firstword $(shell cat .config 2>/dev/null))
KEPT := $(wordlist 2,99,$(shell cat .config 2>/dev/null))
RATRAIN = env $(foreach kept,$(KEPT),$(if $($(firstword $(subst =, ,$(kept)))),,$(kept))) $(BIN)/ratrain
GIVEN = $(foreach name,$(VARIABLES),$(if $($(name)),$(name)=$($(name))))
DEFCONFIGS := ratrain/legacy/defconfigs

.DEFAULT_GOAL := main
.PHONY: defconfig defconfig-none list-defconfigs main install test test-fast test-slow test-cluster faults calibration lint check golden bench bench-compare bench-page bench-selftest rehearse zoo kernels gpu-check gpu-carry gpu-first docs clean help

main: install ## set up, then train V9, draw a sample and write a report (the default); or what defconfig-NAME chose
ifeq ($(CHOSEN),)
	$(BIN)/ratrain ratrain/manifests/unified_ra_v9.toml
	$(BIN)/ratrain report @last
else
	$(RATRAIN) $(CHOSEN) $(ARGS)
endif

defconfig-none: ## choose no configuration: make trains V9 again
	rm -f .config

defconfig: ## choose a configuration of the reference by its path, DEFCONFIG=path; or defconfig-NAME, defconfig-old-NAME
	@test -n "$(DEFCONFIG)" || { echo "expected DEFCONFIG=path, or make defconfig-NAME; make list-defconfigs"; exit 2; }
	@$(call choose,$(firstword $(wildcard $(DEFCONFIG) ratrain/$(DEFCONFIG) $(DEFCONFIGS)/$(DEFCONFIG) $(DEFCONFIGS)/gpt2/$(DEFCONFIG))),$(DEFCONFIG))

defconfig-old-%:
	@$(call choose,$(wildcard $(DEFCONFIGS)/old/$*),$*)

defconfig-%:
	@$(call choose,$(firstword $(wildcard $(addsuffix /$*,$(DEFCONFIGS) $(DEFCONFIGS)/gpt2 $(DEFCONFIGS)/old))),$*)

list-defconfigs: ## list the configurations that defconfig-NAME can choose
	@cd $(DEFCONFIGS) && for file in $$(find . -type f | sort); do \
		name=$$(echo $$file | sed 's|^\./old/|old-|; s|^.*/||'); \
		printf 'defconfig-%-52s %s\n' $$name "$$(head -1 $$file | cut -c3-)"; done

define choose
	if [ -z "$(1)" ]; then echo "$(2): no such configuration; make list-defconfigs"; exit 2; fi; \
	printf '%s\n' '$(1)' $(foreach given,$(GIVEN),'$(given)') > .config; \
	echo "$(1) is chosen: make runs it, make check checks its runs, make defconfig-none forgets it"
endef

install: $(READY) ## make the virtual environment with the tested versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,plots]'
	@touch $@

test-fast: install ## the tests that start no process and compile nothing: three minutes
	$(BIN)/python -m pytest -n 2 --fast tests

test-slow: install ## the tests that `make test` leaves out: kills, studies, statistics, a rehearsed GPU
	$(BIN)/python -m pytest -n 2 -m "slow and not cluster" tests

test-cluster: install ## studies on a real Slurm and a real Ray, with kills: skipped where they are not installed; ten minutes
	$(BIN)/python -m pytest -m cluster tests/cluster

test: install ## run the tests, all but the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow" tests
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 -m interpreter tests/kernels

faults: install ## kill runs at 1000 points, flip 5000 bits, mutate 20 000 manifests: half an hour
	FAULTS=long $(BIN)/python -m pytest -s tests/faults tests/config/test_fuzz.py

calibration: install ## train 9392 runs whose truth is known, and report how often studies of them are wrong: an hour
	$(BIN)/python tests/ablation/calibration.py train --jobs 2
	$(BIN)/python tests/ablation/calibration.py report

lint: install ## check style and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: install ## build the documentation site into build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: install ## build every manifest on the meta device: parameters, FLOPs, KV bytes, twins; or all runs of the choice
	$(RATRAIN) check $(CHOSEN)

golden: install ## rewrite tests/golden after a change to what a manifest means
	$(BIN)/python tests/golden/write.py

bench: install ## what everything costs: variants, operations, decoding, engine, NANOGPT=path; ARGS="-k v9 --scale study_2026_11"
	$(BIN)/python -m pytest bench --benchmark-only -q $(ARGS)

bench-compare: install ## is a step slower than at REF=main~3, and does it do more? VARIANTS="v0 v9" SCALE=study INSTRUCTIONS=1
	$(BIN)/python -m bench.compare.commits $(REF) $(if $(VARIANTS),--variants $(VARIANTS)) $(if $(SCALE),--scale $(SCALE)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(INSTRUCTIONS),--instructions) $(if $(ALLOW),--allow $(ALLOW)) \
		$(if $(DEVICE),--device $(DEVICE))

bench-page: install ## draw what is kept in bench/history as docs/performance/history.html
	$(BIN)/python -m bench.history.page

bench-selftest: install ## how often is bench-compare wrong? 200 injected slowdowns of 5 %, 200 of nothing: a quarter of an hour
	$(BIN)/python -m bench.compare.selftest $(ARGS)

rehearse: install ## what would every step do on a GPU? graphs, syncs, launches, bytes, modelled times; ARGS="v0 --kernels"
	$(BIN)/python -W ignore -m bench.rehearsal $(ARGS)

zoo: install ## which planted faults do verify, the preflight and audit find? writes docs/zoo.md: five minutes
	$(BIN)/python -W ignore tests/zoo/zoo.py --write

kernels: install ## compile every Triton kernel for five GPUs: registers, spills, shared memory, tensor cores
	$(BIN)/python -m ratrain.kernels.ahead

gpu-check: ## are the kernels right on this GPU, and how fast? Then steps of every variant
	$(PYTHON) -m bench.gpu.check

gpu-carry: ## fetch what a bare GPU machine lacks into .gpu/site, to be carried there with the checkout
	$(PYTHON) -m bench.gpu.carry

gpu-first: ## the first minutes on a GPU, CALL=1 (seven) then CALL=2 (five); NANOGPT=path; REHEARSE=1 tries it on a CPU
	$(PYTHON) -m bench.gpu.first --call $(or $(CALL),1) $(if $(REHEARSE),--rehearse) $(ARGS)

clean: ## remove the virtual environment and build products; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .benchmarks

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10
