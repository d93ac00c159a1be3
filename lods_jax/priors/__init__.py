"""Image priors: frozen networks that answer questions about noise. Each is a factory that returns a `types.Prior`."""
