import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.cloudevents.CloudEvent;
import io.cloudevents.core.builder.CloudEventBuilder;
import io.cloudevents.core.data.BytesCloudEventData;
import io.cloudevents.kafka.KafkaMessageFactory;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.OffsetDateTime;
import java.util.Base64;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * A program with Kafka's own client and the SDK of CloudEvents that does what it is told: a line of JSON each, and a line of
 * JSON as the answer. Argument: the servers.
 */
public class Kafka {
    /** How long a record may take to come. */
    private static final Duration PATIENCE = Duration.ofSeconds(20);

    public static void main(String[] arguments) throws Exception {
        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0]);
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonElement answer;
            try {
                var asked = JsonParser.parseString(line).getAsJsonObject();
                answer = asked.get("do").getAsString().equals("read") ? read(settings, asked) : write(settings, asked);
            } catch (Exception cause) {
                var failed = new JsonObject();
                failed.addProperty("error", cause.toString());
                answer = failed;
            }
            out.println(answer);
        }
    }

    private static JsonElement read(Map<String, Object> settings, JsonObject asked) throws Exception {
        var seen = new JsonArray();
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            String topic = asked.get("from").getAsString();
            var partitions = consumer.partitionsFor(topic).stream().map(one -> new TopicPartition(topic, one.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            long until = System.nanoTime() + PATIENCE.toNanos();
            while (seen.size() < asked.get("count").getAsInt() && System.nanoTime() < until) {
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    seen.add(seen(record));
                }
            }
        }
        return seen;
    }

    private static JsonObject seen(ConsumerRecord<String, byte[]> record) {
        CloudEvent event = KafkaMessageFactory.createReader(record).toEvent();
        var attributes = new JsonObject();
        for (String name : event.getAttributeNames()) {
            attributes.addProperty(name, event.getAttribute(name).toString());
        }
        for (String name : event.getExtensionNames()) {
            attributes.addProperty(name, event.getExtension(name).toString());
        }
        var headers = new JsonObject();
        for (Header header : record.headers()) {
            if (!header.key().startsWith("ce_") && !header.key().equals("content-type")) {
                headers.addProperty(header.key(), new String(header.value(), StandardCharsets.UTF_8));
            }
        }
        byte[] body = event.getData() == null ? new byte[0] : event.getData().toBytes();
        var seen = new JsonObject();
        seen.add("attributes", attributes);
        seen.add("headers", headers);
        seen.addProperty("body", Base64.getEncoder().encodeToString(body));
        seen.addProperty("lane", record.partition());
        seen.addProperty("key", record.key());
        return seen;
    }

    /** Kafka's own partitioner chooses by the key, which is the subject. */
    private static JsonElement write(Map<String, Object> settings, JsonObject asked) throws Exception {
        var lanes = new JsonArray();
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            for (JsonElement each : asked.getAsJsonArray("messages")) {
                JsonObject message = each.getAsJsonObject();
                CloudEvent event = event(message);
                var writer = KafkaMessageFactory.<String>createWriter(asked.get("to").getAsString(), event.getSubject());
                ProducerRecord<String, byte[]> record = asked.get("structured").getAsBoolean()
                    ? writer.writeStructured(event, "application/cloudevents+json")
                    : writer.writeBinary(event);
                for (var header : message.getAsJsonObject("headers").entrySet()) {
                    record.headers().add(header.getKey(), header.getValue().getAsString().getBytes(StandardCharsets.UTF_8));
                }
                lanes.add(producer.send(record).get().partition());
            }
        }
        return lanes;
    }

    private static CloudEvent event(JsonObject message) {
        var builder = CloudEventBuilder.v1();
        for (var attribute : message.getAsJsonObject("attributes").entrySet()) {
            String value = attribute.getValue().getAsString();
            switch (attribute.getKey()) {
                case "specversion" -> { }
                case "id" -> builder.withId(value);
                case "source" -> builder.withSource(URI.create(value));
                case "type" -> builder.withType(value);
                case "subject" -> builder.withSubject(value);
                case "time" -> builder.withTime(OffsetDateTime.parse(value));
                case "dataschema" -> builder.withDataSchema(URI.create(value));
                case "datacontenttype" -> builder.withDataContentType(value);
                default -> builder.withExtension(attribute.getKey(), value);
            }
        }
        byte[] body = Base64.getDecoder().decode(message.get("body").getAsString());
        return (body.length == 0 ? builder : builder.withData(BytesCloudEventData.wrap(body))).build();
    }
}
