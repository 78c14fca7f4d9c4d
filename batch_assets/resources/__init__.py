"""What assets work with: the Spark session, the model registry, the endpoints. All wait for their first use."""
