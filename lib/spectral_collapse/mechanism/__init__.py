"""What changes inside a recursively trained model: gradients, landscape, drift, activations, eigenvectors, outputs."""
