"""Elementwise linear recurrences, real or complex."""

from pallas_kernels.diag_scan.api import diag_scan, explain_backend

__all__ = ["diag_scan", "explain_backend"]
