# Every target does its own set-up: a virtual environment from a lock file, made once and again only when the lock
# changes. What it needs is Python 3.11 or newer, make and git. `make PYTHON=/path/to/python3.12 check` chooses one.

PYTHON ?= python3
VENV := .venv
VENV_DEMO := .venv-demo
VENV_PEERS := .venv-peers
LOCK := deploy/lock

# One set of flags for every call: nothing to answer, nothing to read but errors.
PIP_FLAGS := --quiet --disable-pip-version-check --no-input --progress-bar off
# Pytest's options: `make test ARGS="-k barrier -x"`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo check test test-containers chaos model mutants bench bench-quick lock clean
.DELETE_ON_ERROR:

help: ## Say what there is
	@echo "make demo    500 orders on an embedded database, one kill -9, no server: under a minute"
	@echo "make check   linters, types and the fast tests that need no server: a minute or two"
	@echo "make test    everything, in about ten minutes, on a real RabbitMQ and a real PostgreSQL: found on this host, or brought up"
	@echo "make test-containers   docker-compose.yml as it stands: needs a Docker engine with Compose v2"
	@echo "make chaos   twenty minutes of all faults at once, on private servers: --minutes 5 --seed 7 --only broker"
	@echo "make bench   us and our peers on this machine, in turn: writes docs/benchmarks.md, in thirty-five minutes"
	@echo "make bench-quick   the same in four minutes, with fewer runs; it writes nothing"
	@echo "make model   every order of events in a small model of the protocol, by spin: about five minutes"
	@echo "make mutants breaks each law on purpose, in a copy, and sees that the simulation catches it: two minutes"
	@echo "make lock    compile the lock files again (make lock UPGRADE=1 takes newer versions)"
	@echo "make clean   remove the virtual environments and the caches"

demo: $(VENV_DEMO)/.installed
	@$(VENV_DEMO)/bin/watership demo

check: $(VENV)/.installed
	@$(VENV)/bin/python -m tests.support.check

test: $(VENV)/.installed
	@$(VENV)/bin/python -m pytest $(ARGS)

chaos: $(VENV)/.installed
	@$(VENV)/bin/python -m tests.chaos $(ARGS)

# `make bench ARGS="--only throughput,embedded"` for some of it; `ARGS=--list` says what there is.
bench: $(VENV)/.installed $(VENV_PEERS)/.locked
	@$(VENV)/bin/python -m tests.benchmarks $(ARGS)

bench-quick: $(VENV)/.installed $(VENV_PEERS)/.locked
	@$(VENV)/bin/python -m tests.benchmarks --quick $(ARGS)

# `make model ARGS=--mutants`: what shows that its properties can fail. Not a part of `make test`, which needs no spin.
model: $(VENV)/.installed
	@$(VENV)/bin/python -m tests.model.run $(ARGS)

# `make mutants ARGS="law-03 owed"` for some of them; `ARGS=--readme` writes the table of tests/mutants/README.md.
mutants: $(VENV)/.installed
	@$(VENV)/bin/python -m tests.mutants.run $(ARGS)

clean:
	rm -rf $(VENV) $(VENV_DEMO) $(VENV_PEERS) .demo .servers .model .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- virtual environments -------------------------------------------------------------------------------------------

# The first interpreter that is new enough and can make a virtual environment. The name alone proves nothing: a shim
# may be there and refuse to run.
PROBE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
define make_venv
	@for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14; do \
		if "$$python" -c '$(PROBE)' >/dev/null 2>&1; then \
			echo "setting up $(1) from $(2) with $$("$$python" --version)"; \
			"$$python" -m venv --clear $(1) && echo '*' >$(1)/.gitignore; exit; \
		fi; \
	done; \
	echo "Watership needs Python 3.11 or newer with its venv module, and none of $(PYTHON), python3, python3.11 to" \
		"python3.14 is one: install it, or say make PYTHON=/path/to/python." >&2; \
	exit 1
endef

# Two stamps: new locks make the environment anew, a changed pyproject.toml only installs watership again (its commands
# are entry points). The build backend is in the locks too, so nothing unpinned is ever fetched.
$(VENV)/.locked: $(LOCK)/dev.txt
	$(call make_venv,$(VENV),$(LOCK)/dev.txt)
	@$(VENV)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r $(LOCK)/dev.txt
	@touch $@

$(VENV_DEMO)/.locked: $(LOCK)/base.txt $(LOCK)/build.txt
	$(call make_venv,$(VENV_DEMO),$(LOCK)/base.txt)
	@$(VENV_DEMO)/bin/python -m pip install $(PIP_FLAGS) --no-compile --require-hashes -r $(LOCK)/base.txt -r $(LOCK)/build.txt
	@touch $@

%/.installed: %/.locked pyproject.toml
	@$(*)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

# What `make bench` compares with. A peer that cannot be installed stops nothing: the run says that it is not there.
$(VENV_PEERS)/.locked: $(LOCK)/peers.txt $(LOCK)/restate/package-lock.json
	$(call make_venv,$(VENV_PEERS),$(LOCK)/peers.txt)
	@$(VENV_PEERS)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r $(LOCK)/peers.txt && touch $@ || \
		echo "the peers could not be installed, which is tried again next time: the benchmarks are of Watership alone" >&2
	@mkdir -p $(VENV_PEERS)/restate && cp $(LOCK)/restate/*.json $(VENV_PEERS)/restate/
	@npm ci --silent --ignore-scripts --no-audit --no-fund --prefix $(VENV_PEERS)/restate || \
		echo "Restate could not be installed (it needs npm; make clean, to try again): the benchmarks go on without it" >&2

.PRECIOUS: %/.locked

# --- lock files -----------------------------------------------------------------------------------------------------

# One resolution, dev.txt, for every Python from 3.11 and every platform; the others are cuts of it, so that what is
# tested is what is shipped. Hashes, and no index's address: a lock installs from any mirror.
UV := $(shell command -v uv 2>/dev/null || echo $(VENV)/bin/uv)
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

lock:
	@command -v "$(UV)" >/dev/null || { $(MAKE) $(VENV)/.locked && $(VENV)/bin/python -m pip install $(PIP_FLAGS) uv; }
	@$(COMPILE) pyproject.toml --all-extras --group dev --output-file $(LOCK)/dev.txt
	@$(COMPILE) pyproject.toml --constraint $(LOCK)/dev.txt --output-file $(LOCK)/base.txt
	@$(COMPILE) pyproject.toml --extra server --constraint $(LOCK)/dev.txt --output-file $(LOCK)/server.txt
	@$(COMPILE) --group build --constraint $(LOCK)/dev.txt --output-file $(LOCK)/build.txt
	@$(COMPILE) --group peers --output-file $(LOCK)/peers.txt
	@wc -l $(LOCK)/*.txt

# --- containers -----------------------------------------------------------------------------------------------------

# Not a part of `make test`, whose servers may be found without Docker. Where there is no engine, it fails.
test-containers: $(VENV)/.installed
	@$(VENV)/bin/python -m pytest tests/acceptance/test_compose.py $(ARGS)
