"""Floor 4: one replica: a model behind an address, by the Open Inference Protocol over HTTP/1.1.

`replica.serve` is the process; the model is passed in as a `Runner`. The rest is what it is made of:
`http`, `connection` and `exchange` (HTTP), `protocol` (bytes to arrays and back), `app` (addresses), `batcher`
and `pace` (the queue), `runners` (models from bundles), `metrics`, `tokens`. See docs/serving.md.
"""
