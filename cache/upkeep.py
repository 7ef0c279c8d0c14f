"""Looking after a store: `verify` reads every checksum, `prune` frees what nobody needs."""

from cache.prune import PruneReport, prune
from cache.verify import Problem, verify

__all__ = ["Problem", "PruneReport", "prune", "verify"]
