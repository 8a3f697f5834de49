#!lua flags=allow-oom
-- Removes the messages of a lane before a place. Also where the server has no memory left: it makes room.
--
-- KEYS: the channel's record, the sizes of lanes, the lanes (each the beginning of keys of one slot)
-- ARGV: the lane, the last place that goes, the first that may stay
local record, sizes, lane = KEYS[1], KEYS[2] .. ARGV[1], KEYS[3] .. ARGV[1]
redis.call('XTRIM', lane, 'MINID', ARGV[3])
local known = redis.call('HMGET', record, 'added' .. ARGV[1], 'freed' .. ARGV[1])
local added, freed = tonumber(known[1]) or 0, tonumber(known[2]) or 0
local sum = freed
if redis.call('XLEN', lane) == 0 then
    sum = added
else
    local last = redis.call('XREVRANGE', sizes, ARGV[2], '-', 'COUNT', 1)[1]
    if last then
        sum = math.max(freed, tonumber(last[2][2]))
    end
end
redis.call('XTRIM', sizes, 'MINID', ARGV[3])
if sum > freed then
    redis.call('HSET', record, 'freed' .. ARGV[1], string.format('%.0f', sum))
    redis.call('HINCRBY', record, 'bytes', string.format('%.0f', freed - sum))
end
return 0
