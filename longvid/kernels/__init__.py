"""Kernels: block-sparse attention, radial masks and the cache's hot loops, each beside its plain PyTorch twin.

Nothing here knows models, pipelines or the cache. Importing this package imports neither torch nor triton.
"""
