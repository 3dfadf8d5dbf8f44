"""The endpoint: a parent that holds the socket, a router that speaks HTTP, one worker process per model version.

keeper       holds the listening socket and starts routers: `python -m modelyard.serve`
program      one router process, from start to end; starting: the processes behind it
server       the listening socket and uvicorn's server; tls: its certificate
http         connections: uvicorn's, with a short way for inference requests
app          HTTP: which path does what; answers: status, headers, content; lineage: what every answer carries; bodies: type,
             encoding and size
inference    one inference request from its bytes to its answer; deadlines: one timer for all of them
protocol_v2  Open Inference Protocol v2: requests to arrays and back, pure; datatypes: its numbers
unread       requests that a worker reads itself; reader: what it does with them
protocol_mlflow  MLflow's scoring protocol: rows by column name, pure
protocol_openai  embeddings and the list of models as OpenAI's clients ask for them; protocol_v2_text, texts: what is text
router       draws the version that answers, and asks another when a worker dies
running      one version kept alive: its worker, its queue, its restarts
batching     requests that arrived together become one call; pieces: a large one becomes several
workers      the `WorkerPool` protocol and its local form, subprocesses behind unix sockets; patience: when one hangs
ray_workers  the same on a Ray cluster; ray_replica: what runs there
group        several workers of one version as one
worker       the process that executes a model: `python -m modelyard.serve.worker`; worker_info: what it says of itself
wire         the frames between the two
reconcile    follows the revisions in the bucket: loading (fetch, start, probe), admission (what does not fit), switch
attempts     what became of those that were tried, and whether one may be tried now
judging      decides rollouts from what each trial counts (trial, pairs; shadow: copies; replay: while nobody asks)
probe        the golden rows a version must reproduce before it answers anybody
verifier     checks signatures, in a process of its own
cache, state what survives without the bucket
recording    the prediction log: which answers are kept; recorder: the process that writes them
keys         who may ask, what for and how often
disclosure   how much of an answer clients are told; metering: how often each key asked today
openapi      the OpenAPI document of what is served now
status       what this replica says about itself; metrics: the same for Prometheus
limits       every bound; threads: blocking calls beside the event loop
"""
