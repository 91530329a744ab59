"""Why a recursively trained model declines: what changes inside it, each quantity a function of models or arrays.

gradients, landscape, drift, activations, eigenvectors and their tracking, outputs.
"""
