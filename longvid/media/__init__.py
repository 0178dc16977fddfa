"""Crash-safe video files and the journal that lets a render go on bit-exactly."""
