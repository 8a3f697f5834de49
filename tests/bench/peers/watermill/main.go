// Publishes or consumes with Watermill, and says how long that took.
//
//	peer BROKER ADDRESS publish TOPIC COUNT BYTES
//	peer BROKER ADDRESS consume TOPIC COUNT BYTES
//
// The first eight bytes of a body are the number of the message, little endian. The answer is one line: "done" and the
// nanoseconds from the first message to the last. Every message has to arrive, or it fails.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

const (
	// Messages under way at once. A publisher of Watermill waits for each message, so as many publish beside each other.
	window = 1024
	// How long nothing may come before messages are called lost.
	silence = 20 * time.Second
)

// broker makes what Watermill needs to talk to one kind of broker.
type broker struct {
	publisher func(address string) (message.Publisher, error)
	// Subscribers of one group, each with a channel of its own.
	subscribers func(address, group string) ([]message.Subscriber, error)
}

var brokers = map[string]broker{
	"amqp":  {rabbitPublisher, rabbitSubscribers},
	"kafka": {kafkaPublisher, kafkaSubscribers},
	"nats":  {natsPublisher, natsSubscribers},
	"redis": {redisPublisher, redisSubscribers},
}

func main() {
	took, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("done", took.Nanoseconds())
}

func run(words []string) (time.Duration, error) {
	if len(words) != 6 {
		return 0, fmt.Errorf("usage: peer BROKER ADDRESS publish|consume TOPIC COUNT BYTES")
	}
	broker, known := brokers[words[0]]
	if !known {
		return 0, fmt.Errorf("no broker is called %s", words[0])
	}
	count, err := strconv.ParseUint(words[4], 10, 64)
	if err != nil {
		return 0, err
	}
	size, err := strconv.Atoi(words[5])
	if err != nil {
		return 0, err
	}
	address, topic := words[1], words[3]
	switch words[2] {
	case "publish":
		publisher, err := broker.publisher(address)
		if err != nil {
			return 0, err
		}
		return publish(publisher, topic, count, size)
	case "consume":
		subscribers, err := broker.subscribers(address, topic)
		if err != nil {
			return 0, err
		}
		return consume(subscribers, topic, count, size)
	default:
		return 0, fmt.Errorf("there is nothing to do that is called %s", words[2])
	}
}

func publish(publisher message.Publisher, topic string, count uint64, size int) (time.Duration, error) {
	var next atomic.Uint64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	begin := time.Now()
	for range window {
		all.Add(1)
		go func() {
			defer all.Done()
			for failed.Load() == nil {
				number := next.Add(1) - 1
				if number >= count {
					return
				}
				body := make([]byte, size)
				binary.LittleEndian.PutUint64(body, number)
				one := message.NewMessage(watermill.NewUUID(), body)
				one.Metadata.Set(subject, strconv.FormatUint(number%subjects, 10))
				if err := publisher.Publish(topic, one); err != nil {
					failed.Store(&err)
				}
			}
		}()
	}
	all.Wait()
	took := time.Since(begin)
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return took, publisher.Close()
}

func consume(subscribers []message.Subscriber, topic string, count uint64, size int) (time.Duration, error) {
	arrived := make(chan *message.Message, window)
	for _, subscriber := range subscribers {
		messages, err := subscriber.Subscribe(context.Background(), topic)
		if err != nil {
			return 0, err
		}
		go func() {
			for one := range messages {
				arrived <- one
			}
		}()
	}
	seen := make([]bool, count)
	var first time.Time
	quiet := time.NewTimer(silence)
	for left := count; left > 0; {
		select {
		case one := <-arrived:
			if first.IsZero() {
				first = time.Now()
			}
			if len(one.Payload) != size {
				return 0, fmt.Errorf("a body of %d bytes came", len(one.Payload))
			}
			number := binary.LittleEndian.Uint64(one.Payload)
			if number >= count {
				return 0, fmt.Errorf("message %d came", number)
			}
			if !seen[number] {
				seen[number] = true
				left--
			}
			one.Ack()
			quiet.Reset(silence)
		case <-quiet.C:
			return 0, fmt.Errorf("%d of %d messages did not come", left, count)
		}
	}
	return time.Since(first), nil
}
