-- wrk posts one body again and again: BENCH_BODY (a file), BENCH_HEADERS (lines of "Name: value").
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
for name, value in string.gmatch(os.getenv("BENCH_HEADERS"), "([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end

function done(summary, latency)
  local failed = summary.errors
  print(string.format('RESULT {"n": %d, "seconds": %.6f, "mean_ms": %.4f, "p50_ms": %.4f, "p99_ms": %.4f, "n_failed": %d}', summary.requests,
    summary.duration / 1e6, latency.mean / 1e3, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    failed.status + failed.connect + failed.read + failed.write + failed.timeout))
end
