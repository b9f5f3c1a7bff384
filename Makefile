# make demo: set everything up, then run the whole pipeline on the embedded systems; ends with results/report.html
# make test: set everything up, then check style and run the tests
PYTHON ?= python3.11
CORES ?= 2
FASHION_MNIST := /usr/share/datasets/fashion-mnist
BIN := .venv/bin
# one shell line: what every command needs to find the tools of the environment
ACTIVATE := export PATH="$(CURDIR)/$(BIN):$$PATH";

.PHONY: demo test test-slow data

demo: .venv/ready
	@$(ACTIVATE) snakemake --cores $(CORES)
	@echo "The report is results/report.html"

test: .venv/ready data
	@$(ACTIVATE) ruff check .
	@$(ACTIVATE) ruff format --check .
	@$(ACTIVATE) snakefmt --check Snakefile workflow/rules
	@$(ACTIVATE) snakemake --lint
	@$(ACTIVATE) python -m pytest -q -n $(CORES) --dist worksteal

# a published system at full size: minutes and gigabytes
test-slow: .venv/ready data
	@$(ACTIVATE) python -m pytest -q -m slow

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# the tests read real images; the demo's statistics of them are in assets/
data:
	@test -d $(FASHION_MNIST) || ! command -v apt-get > /dev/null || $(MAKE) --no-print-directory install-data

.PHONY: install-data
install-data:
	apt-get update -qq
	apt-get install -y -qq dataset-fashion-mnist
