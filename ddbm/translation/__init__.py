"""Images of any size through a trained model: windows that are fused at every evaluation."""
