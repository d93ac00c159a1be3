"""Image priors: frozen networks that predict noise. Each is a factory that returns a `types.Prior`."""
