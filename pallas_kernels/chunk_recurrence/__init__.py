"""Matrix-state linear recurrences, chunk by chunk."""

from pallas_kernels.chunk_recurrence.api import chunk_recurrence, explain_backend

__all__ = ["chunk_recurrence", "explain_backend"]
