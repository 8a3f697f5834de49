import io.debezium.embedded.Connect;
import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import java.io.IOException;
import java.io.PrintStream;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.Properties;
import java.util.StringJoiner;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Reads a slot with the Debezium engine, counts the records and keeps nothing.
 *
 * <p>Arguments: host, port, database, user, slot, publication, how many records to wait for, and the column that says
 * when a row was written in microseconds since 1970, or "-". Says "begun" when the engine is told to run, "started"
 * when the connector's task runs, and "done N" when all records came; with a column, "samples" and the age of every
 * record in microseconds before that.
 */
public final class Peer {
    public static void main(String[] arguments) throws Exception {
        // Whatever the libraries print does not mix with what is said here.
        PrintStream out = System.out;
        System.setOut(System.err);
        endWithParent();
        int wanted = Integer.parseInt(arguments[6]);
        String column = arguments[7].equals("-") ? null : arguments[7];
        long[] ages = new long[column == null ? 0 : wanted];
        int[] count = {0};

        DebeziumEngine.ChangeConsumer<ChangeEvent<SourceRecord, SourceRecord>> handler = (events, committer) -> {
            for (ChangeEvent<SourceRecord, SourceRecord> event : events) {
                if (column != null && count[0] < wanted) {
                    Struct row = ((Struct) event.value().value()).getStruct("after");
                    long now = ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
                    ages[count[0]] = now - row.getInt64(column);
                }
                count[0]++;
                committer.markProcessed(event);
            }
            committer.markBatchFinished();
            if (count[0] >= wanted) {
                if (column != null) {
                    StringJoiner line = new StringJoiner(" ", "samples ", "");
                    for (long age : ages) {
                        line.add(Long.toString(age));
                    }
                    out.println(line);
                }
                out.println("done " + count[0]);
                out.flush();
            }
        };
        DebeziumEngine.ConnectorCallback callback = new DebeziumEngine.ConnectorCallback() {
            @Override
            public void taskStarted() {
                out.println("started");
                out.flush();
            }
        };
        DebeziumEngine.CompletionCallback end = (success, message, cause) -> {
            out.println("ended " + message);
            out.flush();
            System.exit(1);
        };
        Runnable engine = DebeziumEngine.create(Connect.class)
            .using(settings(arguments))
            .using(callback)
            .using(end)
            .notifying(handler)
            .build();
        out.println("begun");
        out.flush();
        engine.run();
    }

    /** Whoever started this holds the other end of its input. */
    private static void endWithParent() {
        Thread watcher = new Thread(() -> {
            try {
                while (System.in.read() != -1) {
                    // Nothing is said there.
                }
            } catch (IOException gone) {
                // Also the end.
            }
            Runtime.getRuntime().halt(0);
        });
        watcher.setDaemon(true);
        watcher.start();
    }

    private static Properties settings(String[] arguments) {
        Properties settings = new Properties();
        List<String> pairs = List.of(
            "name=peer",
            "connector.class=io.debezium.connector.postgresql.PostgresConnector",
            "offset.storage=org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
            "topic.prefix=peer",
            "plugin.name=pgoutput",
            "snapshot.mode=no_data",
            "publication.autocreate.mode=disabled",
            "poll.interval.ms=5",
            "database.hostname=" + arguments[0],
            "database.port=" + arguments[1],
            "database.dbname=" + arguments[2],
            "database.user=" + arguments[3],
            "database.sslmode=disable",
            "slot.name=" + arguments[4],
            "publication.name=" + arguments[5]);
        for (String pair : pairs) {
            String[] parts = pair.split("=", 2);
            settings.setProperty(parts[0], parts[1]);
        }
        return settings;
    }

    private Peer() {}
}
