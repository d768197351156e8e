# The client: `convoy predict`, `convoy score`, `convoy probe` and the library, without torch and without a server.
#
#   docker build -f deploy/client.Dockerfile -t convoy-client:0.1.0 .
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/requirements-build.lock deploy/requirements-client.lock deploy/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r deploy/requirements-build.lock \
    && python -m venv /opt/convoy \
    && /opt/convoy/bin/pip install --no-cache-dir --require-hashes -r deploy/requirements-client.lock
COPY pyproject.toml README.md LICENSE ./
# convoy/ holds relative links to the stages: both sides are needed.
COPY convoy/ convoy/
COPY training/ training/
COPY export/ export/
COPY serving/ serving/
RUN /opt/build/bin/hatchling build -t wheel -d /tmp/wheel \
    && /opt/convoy/bin/pip install --no-cache-dir --no-deps --no-index /tmp/wheel/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin convoy
COPY --from=build /opt/convoy /opt/convoy
ENV PATH=/opt/convoy/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER convoy
ENTRYPOINT ["convoy"]
CMD ["--help"]
