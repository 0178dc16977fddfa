"""Few-step students: Self-Forcing's DMD, Rolling Forcing's objective, Re-DMD. docs/training.md is the guide."""
