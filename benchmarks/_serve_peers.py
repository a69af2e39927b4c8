"""One server of another kind with the same ONNX file, for `serve_peers.py`; needs none of hpcmass.

    python benchmarks/_serve_peers.py bare|fastapi|litserve|mlserver|ray PORT MODEL.onnx

Each as its documentation shows it for one replica on one core, with what is quickest for a small model: no
batching (one computation takes a fiftieth of a request), orjson, uvloop and httptools where it lets choose.
"""

import sys

import numpy as np
import onnxruntime
import orjson

KIND, PORT, MODEL = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PATH = "/v2/models/mnist/infer"
HOST = "127.0.0.1"


def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def read(body: bytes) -> np.ndarray:
    one = orjson.loads(body)["inputs"][0]
    return np.array(one["data"], np.uint8).reshape(one["shape"])


def write(found: np.ndarray) -> bytes:
    one = {"name": "probabilities", "datatype": "FP32", "shape": found.shape, "data": found.reshape(-1)}
    said = {"model_name": "mnist", "model_version": "1", "outputs": [one]}
    return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)


def bare() -> None:
    import uvicorn

    model = session()

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body")
        text = write(model.run(None, {"image": read(body)})[0])
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": text})

    uvicorn.run(app, host=HOST, port=PORT, loop="uvloop", http="httptools", lifespan="off", access_log=False)


def fastapi() -> None:
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app, model = FastAPI(), session()

    @app.post(PATH)
    async def infer(request: Request) -> Response:
        found = model.run(None, {"image": read(await request.body())})[0]
        return Response(write(found), media_type="application/json")

    uvicorn.run(app, host=HOST, port=PORT, loop="uvloop", http="httptools", access_log=False)


if KIND == "litserve":
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device):
            self.model = session()

        def decode_request(self, request):
            one = request["inputs"][0]
            return np.array(one["data"], np.uint8).reshape(one["shape"])

        def predict(self, image):
            return self.model.run(None, {"image": image})[0]

        def encode_response(self, found):
            one = {"name": "probabilities", "datatype": "FP32", "shape": list(found.shape)}
            return {"model_name": "mnist", "outputs": [{**one, "data": found.reshape(-1).tolist()}]}


def lit() -> None:
    server = litserve.LitServer(Api(api_path=PATH), accelerator="cpu", fast_queue=True)
    server.run(host=HOST, port=PORT, num_api_servers=1, log_level="error", generate_client_file=False)


if KIND == "mlserver":
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceResponse

    class Onnx(MLModel):
        async def load(self):
            self.model = session()
            return True

        async def predict(self, payload):
            image = NumpyCodec.decode_input(payload.inputs[0])
            found = self.model.run(None, {"image": image})[0]
            outputs = [NumpyCodec.encode_output("probabilities", found)]
            return InferenceResponse(model_name=self.name, outputs=outputs)


def ml() -> None:
    import asyncio

    from mlserver import MLServer, ModelSettings, Settings

    async def run() -> None:
        settings = Settings(
            host=HOST,
            http_port=PORT,
            grpc_port=PORT + 1,
            metrics_endpoint=None,
            parallel_workers=0,
            debug=False,
        )
        server = MLServer(settings)
        await server.start(models_settings=[ModelSettings(name="mnist", implementation="_serve_peers.Onnx")])

    asyncio.run(run())


def ray() -> None:
    import time

    import ray as cluster
    from ray import serve
    from starlette.responses import Response

    @serve.deployment(num_replicas=1, max_ongoing_requests=100)
    class Onnx:
        def __init__(self, read, write, session):
            self.read, self.write, self.model = read, write, session()

        async def __call__(self, request):
            found = self.model.run(None, {"image": self.read(await request.body())})[0]
            return Response(self.write(found), media_type="application/json")

    cluster.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": HOST, "port": PORT, "location": "HeadOnly"})
    serve.run(Onnx.bind(read, write, session), route_prefix="/")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    {"bare": bare, "fastapi": fastapi, "litserve": lit, "mlserver": ml, "ray": ray}[KIND]()
