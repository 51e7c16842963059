# For a Cloud TPU VM (EXTRAS=tpu) or a GPU host (EXTRAS=cuda). Not built or run by the project yet.
#
#   docker build --build-arg EXTRAS=tpu --tag mlperf_jax .
#   docker run --privileged --network=host --volume $PWD/results:/app/results --volume /data:/data \
#       mlperf_jax --workload=resnet50 --platform=tpu --data_dir=/data
FROM python:3.12-slim
ARG EXTRAS=tpu
WORKDIR /app
COPY . .
RUN python -m pip install --no-cache-dir --upgrade pip && \
    python -m pip install --no-cache-dir --constraint constraints.txt --editable ".[${EXTRAS}]"
ENTRYPOINT ["python", "-P", "-m", "mlperf_jax.main"]
