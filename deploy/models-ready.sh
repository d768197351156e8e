#!/usr/bin/env bash
# Exit 0 where a Triton server answers "ready" for every model of its repository, and there is at least one.
#
#   models-ready.sh [REPOSITORY [HTTP_PORT]]      defaults: /models 8000
#
# The health check of docker-compose.yml. Asking model by model is deliberate: once a version has failed to load, the server's
# own /v2/health/ready says no until the server is restarted, even while the version before it answers and after a good one has
# taken its place. Bash alone is used, because what else NVIDIA's image holds changes from release to release.
set -u
repository=${1:-/models} port=${2:-8000}

# The status of a GET on the path, 000 where nothing answers.
status_of() {
    local status=000
    if exec 3<>"/dev/tcp/127.0.0.1/$port"; then
        printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" >&3
        read -r _ status _ <&3
        exec 3>&-
    fi 2>/dev/null
    printf '%s' "${status:-000}"
}

shopt -s nullglob
configs=("$repository"/*/config.pbtxt)
if ((${#configs[@]} == 0)); then
    echo "no model in $repository"
    exit 1
fi
failed=0
for config in "${configs[@]}"; do
    model=$(basename "$(dirname "$config")")
    status=$(status_of "/v2/models/$model/ready")
    if [[ $status != 200 ]]; then
        echo "$model: not ready (status $status)"
        failed=1
    fi
done
exit $failed
