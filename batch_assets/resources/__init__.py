"""Resources of the assets: Spark session, model registry, endpoints. Each starts on first use."""
