"""What the algorithms are assembled from: returns, gradients, mixing, heads, and what both pages share."""
