"""One file per algorithm: pure tensors in, a loss and sums to report out."""
