#!lua flags=allow-oom
-- Writes a document if it is at the expected revision, which is empty for one that is not there. Also where the server has no
-- memory left: what is settled makes the room that it needs.
--
-- KEYS: the document
-- ARGV: the expected revision, the new one, the value
if (redis.call('HGET', KEYS[1], 'revision') or '') ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'value', ARGV[3])
return 1
