"""Crash-safe video files, and the journal that lets a render go on bit-exactly.

frames uint8 [T, H, W, 3] -> a format (mp4, gif, webp, png) makes bytes of a block, from that block alone
                          -> the writer appends them so that the file plays at every instant
                          -> the journal records the block, and now and then a snapshot of the rollout
"""
