-- Appends messages to the streams of their lanes, in their order, until the channel is full.
--
-- KEYS: the channel's record, the ids of messages, the sizes of lanes, the lanes (each the beginning of keys of one slot)
-- ARGV: how many lanes, how many messages and bytes are kept at most, for how many seconds ids are known;
--       then of each message: its lane, its id, its size, how many fields follow, and these: name, value, …
-- Answers one place a message that is stored, `=` before that of one that was stored before.
local record, ids, sizes, lane = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lanes, messages_max, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ids_seconds = tonumber(ARGV[4])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local slice = math.floor(tonumber(time[1]) / ids_seconds)
local ids_now, ids_before = ids .. slice, ids .. (slice - 1)

local messages = 0
for at = 0, lanes - 1 do
    messages = messages + redis.call('XLEN', lane .. at)
end
local known = redis.call('HMGET', record, 'ms', 'seq', 'bytes')
local ms, seq, bytes = tonumber(known[1]) or 0, tonumber(known[2]) or 0, tonumber(known[3]) or 0

-- Where each message begins in the arguments, and where one with its id is stored.
local begins, names = {}, {}
local at = 5
while ARGV[at] do
    begins[#begins + 1] = at
    names[#names + 1] = ARGV[at + 1]
    at = at + 4 + 2 * tonumber(ARGV[at + 3])
end
local found = redis.call('HMGET', ids_now, unpack(names))
local before = redis.call('EXISTS', ids_before) == 1 and redis.call('HMGET', ids_before, unpack(names)) or {}

local answers, fresh, added, last = {}, {}, {}, {}
local stored = {}
for number, begin in ipairs(begins) do
    local name = names[number]
    local place = found[number] or before[number] or stored[name]
    if place then
        answers[number] = '=' .. place
    else
        local size = tonumber(ARGV[begin + 2])
        if messages >= messages_max or bytes + size > bytes_max then
            break
        end
        local of = ARGV[begin]
        if now > ms then
            ms, seq = now, 0
        elseif seq == 1048575 then
            ms, seq = ms + 1, 0
        else
            seq = seq + 1
        end
        local first, upto = begin + 4, begin + 3 + 2 * tonumber(ARGV[begin + 3])
        place = redis.pcall('XADD', lane .. of, ms .. '-' .. seq, unpack(ARGV, first, upto))
        if type(place) == 'table' and string.find(place.err, 'equal or smaller', 1, true) then
            -- Somebody else's message has a later place in this lane: ours come behind it.
            local info = redis.call('XINFO', 'STREAM', lane .. of)
            for field = 1, #info, 2 do
                if info[field] == 'last-generated-id' then
                    ms, seq = math.max(ms, tonumber(string.match(info[field + 1], '^%d+'))) + 1, 0
                end
            end
            place = redis.pcall('XADD', lane .. of, ms .. '-' .. seq, unpack(ARGV, first, upto))
        end
        if type(place) == 'table' then
            if #fresh == 0 then
                return place
            end
            -- What is stored is noted; whoever asks for the rest again is told.
            break
        end
        messages, bytes = messages + 1, bytes + size
        answers[number] = place
        stored[name] = place
        fresh[#fresh + 1] = name
        fresh[#fresh + 1] = place
        added[of] = (added[of] or 0) + size
        last[of] = place
    end
end

if #fresh > 0 then
    redis.call('HSET', ids_now, unpack(fresh))
    redis.call('EXPIRE', ids_now, 2 * ids_seconds + 1)
    redis.call('HSET', record, 'ms', string.format('%.0f', ms), 'seq', seq, 'bytes', string.format('%.0f', bytes))
    -- How many bytes were ever added to a lane, at its last place: so that it is known what trimming frees.
    for of, size in pairs(added) do
        local sum = redis.call('HINCRBY', record, 'added' .. of, size)
        redis.call('XADD', sizes .. of, last[of], 'sum', string.format('%.0f', sum))
    end
end
return answers
