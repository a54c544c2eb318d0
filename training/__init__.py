"""The loop: generate, judge, reward, update. The one place for torch, transformers and trl."""
