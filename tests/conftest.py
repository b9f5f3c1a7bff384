"""Before any test module: edadm makes torchvision importable beside a CPU-only torch."""

import edadm  # noqa: F401
