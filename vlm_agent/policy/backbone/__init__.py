"""Vision-language models: families, loading, adapters, quantisation, ``tiny``."""
