-- Requests the lines `host path` of the file named in TARGETS in turn, and prints the totals as one line of JSON.
function init(args)
    local requests, index = {}, 0
    for line in io.lines(os.getenv("TARGETS")) do
        wrk.headers["Host"], wrk.path = line:match("(%S+) (%S+)")
        requests[#requests + 1] = wrk.format()
    end
    if #requests > 1 then -- else wrk sends wrk.path without asking Lua each time
        function request()
            index = index % #requests + 1
            return requests[index]
        end
    end
end

function done(summary, latency, seen)
    io.write(string.format(
        '{"requests": %d, "microseconds": %d, "bytes": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
        summary.requests, summary.duration, summary.bytes, summary.errors.connect, summary.errors.read,
        summary.errors.write, summary.errors.status, summary.errors.timeout))
end
