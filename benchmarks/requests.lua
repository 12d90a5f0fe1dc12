-- For wrk: chats of WORDS words, in 8 groups that share their first half. Arguments: words, stream (true or false).
local prompts, turn = {}, 0

function init(arguments)
  local words, stream = tonumber(arguments[1]), arguments[2]
  wrk.method, wrk.path = "POST", "/v1/chat/completions"
  wrk.headers["Content-Type"] = "application/json"
  math.randomseed(1)
  for prompt = 1, 64 do
    local text = {}
    for word = 1, words do
      local shared = word <= words / 2
      text[word] = "w" .. (shared and (prompt % 8 * 1237 + word * 17) % 9973 or math.random(9972))
    end
    local content = table.concat(text, " ")
    prompts[prompt] = wrk.format(nil, nil, nil, string.format(
      '{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":4,"stream":%s}', content, stream))
  end
end

function request()
  turn = turn % #prompts + 1
  return prompts[turn]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "errors": %d, "p50_us": %d, "p99_us": %d}\n', summary.requests,
    e.status + e.connect + e.read + e.write + e.timeout, latency:percentile(50), latency:percentile(99)))
end
