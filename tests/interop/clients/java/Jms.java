import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import jakarta.jms.BytesMessage;
import jakarta.jms.Connection;
import jakarta.jms.ConnectionFactory;
import jakarta.jms.DeliveryMode;
import jakarta.jms.Destination;
import jakarta.jms.MapMessage;
import jakarta.jms.Message;
import jakarta.jms.MessageConsumer;
import jakarta.jms.MessageProducer;
import jakarta.jms.Queue;
import jakarta.jms.Session;
import jakarta.jms.StreamMessage;
import jakarta.jms.TextMessage;
import jakarta.jms.Topic;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.Collections;
import java.util.Enumeration;
import java.util.HashMap;
import java.util.Map;

/**
 * A program of JMS that does what it is told: a line of JSON each, and a line of JSON as the answer.
 *
 * Arguments: the class of the connection factory, the URL, the user, the password, the client id.
 */
public class Jms {
    private final Connection connection;
    private final Session session;
    private final Map<String, MessageConsumer> consumers = new HashMap<>();

    private Jms(Connection connection) throws Exception {
        this.connection = connection;
        this.session = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
    }

    public static void main(String[] arguments) throws Exception {
        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var made = Class.forName(arguments[0]).getConstructor(String.class).newInstance(arguments[1]);
        try (Connection connection = ((ConnectionFactory) made).createConnection(arguments[2], arguments[3])) {
            connection.setClientID(arguments[4]);
            connection.start();
            var jms = new Jms(connection);
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                JsonElement answer;
                try {
                    answer = jms.answer(JsonParser.parseString(line).getAsJsonObject());
                } catch (Exception cause) {
                    var failed = new JsonObject();
                    failed.addProperty("error", cause.toString());
                    answer = failed;
                }
                out.println(answer);
            }
        }
    }

    private JsonElement answer(JsonObject asked) throws Exception {
        switch (text(asked, "do")) {
            case "send":
                return send(asked);
            case "forward":
                forward(asked);
                return new JsonObject();
            case "subscribe":
                subscribe(asked);
                return new JsonObject();
            case "receive":
                return receive(asked);
            case "give_back":
                giveBack(asked);
                return new JsonObject();
            case "leave":
                consumers.remove(text(asked, "as")).close();
                return new JsonObject();
            case "unsubscribe":
                session.unsubscribe(text(asked, "as"));
                return new JsonObject();
            default:
                throw new IllegalArgumentException(asked.toString());
        }
    }

    private JsonElement send(JsonObject asked) throws Exception {
        Message message = body(text(asked, "kind"), asked.get("body"));
        for (JsonElement property : asked.getAsJsonArray("properties")) {
            JsonArray parts = property.getAsJsonArray();
            set(message, parts.get(0).getAsString(), parts.get(1).getAsString(), parts.get(2));
        }
        if (asked.has("correlation")) {
            message.setJMSCorrelationID(text(asked, "correlation"));
        }
        if (asked.has("type")) {
            message.setJMSType(text(asked, "type"));
        }
        if (asked.has("subject")) {
            message.setStringProperty("JMSXGroupID", text(asked, "subject"));
        }
        if (asked.has("reply_queue")) {
            message.setJMSReplyTo(session.createQueue(text(asked, "reply_queue")));
        }
        if (asked.has("reply_topic")) {
            message.setJMSReplyTo(session.createTopic(text(asked, "reply_topic")));
        }
        try (MessageProducer producer = session.createProducer(destination(asked))) {
            int priority = asked.has("priority") ? asked.get("priority").getAsInt() : Message.DEFAULT_PRIORITY;
            long expires = asked.has("expires_ms") ? asked.get("expires_ms").getAsLong() : 0;
            producer.send(message, DeliveryMode.PERSISTENT, priority, expires);
        }
        var sent = new JsonObject();
        sent.addProperty("id", message.getJMSMessageID());
        sent.addProperty("time", message.getJMSTimestamp());
        return sent;
    }

    /** The next message as it is, to somewhere else. */
    private void forward(JsonObject asked) throws Exception {
        Message message = consumers.get(text(asked, "as")).receive(asked.get("wait_ms").getAsLong());
        if (message == null) {
            throw new IllegalStateException("there is no message to send on");
        }
        try (MessageProducer producer = session.createProducer(destination(asked))) {
            producer.send(message);
        }
    }

    private Destination destination(JsonObject asked) throws Exception {
        if (asked.has("topic")) {
            return session.createTopic(text(asked, "topic"));
        }
        // That of the subject's lane.
        int lane = lane(text(asked, "subject"), asked.get("lanes").getAsInt());
        return session.createTopic(text(asked, "topics") + lane);
    }

    /** The lane of a subject: Kafka's hash (murmur2), as its default partitioner uses it. */
    private static int lane(String subject, int lanes) {
        final int factor = 0x5bd1e995;
        byte[] data = subject.getBytes(StandardCharsets.UTF_8);
        var words = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN);
        int hashed = 0x9747b28c ^ data.length;
        while (words.remaining() >= 4) {
            int word = words.getInt() * factor;
            hashed = hashed * factor ^ (word ^ word >>> 24) * factor;
        }
        int rest = 0;
        for (int shift = 0; words.hasRemaining(); shift += 8) {
            rest |= (words.get() & 0xff) << shift;
        }
        if (data.length % 4 != 0) {
            hashed = (hashed ^ rest) * factor;
        }
        hashed = (hashed ^ hashed >>> 13) * factor;
        return ((hashed ^ hashed >>> 15) & 0x7fffffff) % lanes;
    }

    private Message body(String kind, JsonElement body) throws Exception {
        switch (kind) {
            case "text":
                return session.createTextMessage(body.getAsString());
            case "bytes":
                BytesMessage bytes = session.createBytesMessage();
                bytes.writeBytes(Base64.getDecoder().decode(body.getAsString()));
                return bytes;
            case "map":
                MapMessage map = session.createMapMessage();
                map.setString("name", "größe");
                map.setInt("count", -7);
                map.setLong("total", 1L << 53);
                map.setDouble("weight", 0.5);
                map.setBoolean("paid", true);
                map.setBytes("raw", new byte[] {(byte) 0xff, 0});
                return map;
            case "stream":
                StreamMessage stream = session.createStreamMessage();
                stream.writeString("a");
                stream.writeLong(-5);
                return stream;
            case "object":
                return session.createObjectMessage("an object of Java");
            case "nothing":
                return session.createMessage();
            default:
                throw new IllegalArgumentException(kind);
        }
    }

    private static void set(Message message, String name, String type, JsonElement value) throws Exception {
        switch (type) {
            case "boolean":
                message.setBooleanProperty(name, value.getAsBoolean());
                break;
            case "byte":
                message.setByteProperty(name, value.getAsByte());
                break;
            case "short":
                message.setShortProperty(name, value.getAsShort());
                break;
            case "int":
                message.setIntProperty(name, value.getAsInt());
                break;
            case "long":
                message.setLongProperty(name, value.getAsLong());
                break;
            case "float":
                message.setFloatProperty(name, value.getAsFloat());
                break;
            case "double":
                message.setDoubleProperty(name, value.getAsDouble());
                break;
            default:
                message.setStringProperty(name, value.getAsString());
        }
    }

    /** As it is known here; durable by that name too, or shared by another one. */
    private void subscribe(JsonObject asked) throws Exception {
        String selector = asked.has("selector") ? text(asked, "selector") : null;
        Destination from = destination(asked);
        MessageConsumer consumer;
        if (asked.has("shared")) {
            consumer = session.createSharedDurableConsumer((Topic) from, text(asked, "shared"), selector);
        } else if (asked.has("durable") && asked.get("durable").getAsBoolean()) {
            consumer = session.createDurableSubscriber((Topic) from, text(asked, "as"), selector, false);
        } else {
            consumer = session.createConsumer(from, selector);
        }
        consumers.put(text(asked, "as"), consumer);
    }

    /** So many messages, or fewer if no other one comes within so many milliseconds. */
    private JsonElement receive(JsonObject asked) throws Exception {
        MessageConsumer consumer = consumers.get(text(asked, "as"));
        var all = new JsonArray();
        while (all.size() < asked.get("count").getAsInt()) {
            Message message = consumer.receive(asked.get("wait_ms").getAsLong());
            if (message == null) {
                break;
            }
            all.add(seen(message));
        }
        return all;
    }

    /** Takes a message of a durable subscription that often, and gives it back each time. */
    private void giveBack(JsonObject asked) throws Exception {
        try (Session transacted = connection.createSession(true, Session.SESSION_TRANSACTED)) {
            var consumer = transacted.createDurableSubscriber((Topic) destination(asked), text(asked, "as"));
            for (int times = asked.get("times").getAsInt(); times > 0; times--) {
                if (consumer.receive(asked.get("wait_ms").getAsLong()) == null) {
                    throw new IllegalStateException("there is no message to give back, " + times + " times before the end");
                }
                transacted.rollback();
            }
        }
    }

    private static JsonObject seen(Message message) throws Exception {
        var seen = new JsonObject();
        seen.addProperty("id", message.getJMSMessageID());
        seen.addProperty("correlation", message.getJMSCorrelationID());
        seen.addProperty("type", message.getJMSType());
        seen.addProperty("persistent", message.getJMSDeliveryMode() == DeliveryMode.PERSISTENT);
        Destination reply = message.getJMSReplyTo();
        if (reply instanceof Queue) {
            seen.addProperty("reply_queue", ((Queue) reply).getQueueName());
        } else if (reply instanceof Topic) {
            seen.addProperty("reply_topic", ((Topic) reply).getTopicName());
        }
        if (message instanceof TextMessage) {
            seen.addProperty("kind", "text");
            seen.addProperty("body", ((TextMessage) message).getText());
        } else if (message instanceof BytesMessage) {
            seen.addProperty("kind", "bytes");
            byte[] bytes = new byte[(int) ((BytesMessage) message).getBodyLength()];
            ((BytesMessage) message).readBytes(bytes);
            seen.addProperty("body", Base64.getEncoder().encodeToString(bytes));
        } else {
            seen.addProperty("kind", message.getClass().getSimpleName());
            seen.add("body", JsonNull.INSTANCE);
        }
        var properties = new JsonObject();
        for (Object name : Collections.list((Enumeration<?>) message.getPropertyNames())) {
            properties.addProperty((String) name, message.getStringProperty((String) name));
        }
        seen.add("properties", properties);
        return seen;
    }

    private static String text(JsonObject of, String name) {
        return of.get(name).getAsString();
    }
}
