#!/bin/sh
# Put the database's password, which is in a file, into the addresses that Dagster and MLflow take; then start the command.
set -eu
secret="${POSTGRES_PASSWORD_FILE:-/run/secrets/postgres_password}"
if [ -r "$secret" ]; then
    server="batch_assets:$(cat "$secret")@${POSTGRES_HOST:-postgres}:5432"
    export DAGSTER_POSTGRES_URL="postgresql+psycopg2://$server/dagster"
    # MLflow's server alone; everything else asks the server.
    if [ "$1" = mlflow ]; then
        export MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://$server/mlflow"
    fi
fi
exec "$@"
