"""The asset graph, one module per asset: each reads its inputs, calls a lower layer and reports the result."""
