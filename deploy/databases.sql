-- Run once by the image of PostgreSQL, when its volume is empty.
CREATE DATABASE dagster OWNER batch_assets;
CREATE DATABASE mlflow OWNER batch_assets;
