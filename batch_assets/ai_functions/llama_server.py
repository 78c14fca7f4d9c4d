"""A llama.cpp server on loopback, run as a separate process.

It prints its address as one line of JSON, and exits when its standard input closes. So it ends with the process that
started it, even if that process is killed.
"""

import argparse
import json
import os
import sys

import xllamacpp

# Context size of one slot, for prompt and answer.
_SLOT_TOKENS = 4096


def main() -> None:
    """Serve one GGUF file until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.model_alias = {arguments.name}
    params.n_parallel = arguments.slots
    params.n_ctx = _SLOT_TOKENS * arguments.slots
    params.cpuparams.n_threads = arguments.threads
    params.port = 0
    params.ui = False
    params.cache_ram_mib = 0
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.buffer.read()
    # The server's threads may still be generating an answer that is no longer needed.
    os._exit(0)


if __name__ == "__main__":
    main()
