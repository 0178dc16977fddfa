"""Reading released checkpoints: which layout a file has, what it lacks, whose licence it is under."""
