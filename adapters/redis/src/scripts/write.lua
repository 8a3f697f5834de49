-- Writes a document if it is at the expected revision, which is empty for one that is not there.
--
-- KEYS: the document
-- ARGV: the expected revision, the new one, the value
if (redis.call('HGET', KEYS[1], 'revision') or '') ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'value', ARGV[3])
return 1
