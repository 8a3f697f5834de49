use bytes::Bytes;
use tidegate_core::error::code;
use tidegate_core::port::Blobs;
use tidegate_memory::MemoryBlobs;
use tidegate_runtime::{CLAIM_BYTES, Claims, DATAREF, FolderBlobs, Sender, Service};

use super::*;

#[tokio::test]
async fn blobs_are_kept_whole_until_they_are_purged() {
    let folder = tempfile::tempdir().unwrap();
    let stores: [Arc<dyn Blobs>; 2] =
        [Arc::new(MemoryBlobs::default()), Arc::new(FolderBlobs::open(folder.path().join("blobs")).unwrap())];
    let clock = SystemClock::shared();
    for blobs in stores {
        assert_eq!(blobs.get("one").await.unwrap(), None);
        let large = Bytes::from(vec![7; 3 << 20]);
        blobs.put("one", large.clone()).await.unwrap();
        blobs.put("two", "first".into()).await.unwrap();
        blobs.put("two", "second".into()).await.unwrap();
        blobs.put("none", Bytes::new()).await.unwrap();
        assert_eq!(blobs.get("one").await.unwrap(), Some(large), "{blobs:?}");
        assert_eq!(blobs.get("two").await.unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(blobs.get("none").await.unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(blobs.purge(clock.now() - 60_000_000).await.unwrap(), 0);
        assert_eq!(blobs.purge(clock.now() + 60_000_000).await.unwrap(), 3);
        assert_eq!(blobs.get("one").await.unwrap(), None);
    }
    let blobs = FolderBlobs::open(folder.path().join("blobs")).unwrap();
    let error = blobs.put("../out", Bytes::new()).await.unwrap_err();
    assert!(error.code() == code::CONFIG_INVALID && !folder.path().join("out").exists(), "{error}");
}

#[tokio::test]
async fn a_large_body_goes_beside_the_broker_and_one_that_is_gone_makes_a_dead_letter() {
    let world = World::new().await;
    let blobs = MemoryBlobs::default();
    let claims = Claims::new(Arc::new(blobs.clone())).with_limit(1_000);
    let (whole, seen) = collect_as(&world, &world.orders, Service::new("whole").with_claims(&claims)).await;
    let (passing, passed) = collect_as(&world, &world.orders, Service::new("passing").pass_claims()).await;
    let (knows_nothing, _) = collect_as(&world, &world.orders, Service::new("knows-nothing")).await;
    let (clock, patience) = (Arc::clone(&world.clock), Duration::from_secs(5));
    let sender =
        Sender::open(&*world.broker, &world.orders).with_clock(clock).with_patience(patience).await.unwrap();
    let sender = sender.with_claims(&claims);
    let large = placed("a:1").with_data("text/plain", "x".repeat(1_001));
    let small = placed("b:1").with_data("text/plain", "x".repeat(1_000));
    sender.send_all([large.clone(), small.clone()]).await.unwrap();
    eventually("all of them", || {
        let done = |service: &Running| service.counted().handled + service.counted().dead == 2;
        done(&whole) && done(&passing) && done(&knows_nothing)
    })
    .await;
    drain(passing).await;
    drain(knows_nothing).await;
    let of = |seen: &Arc<Mutex<Vec<Message>>>, id: &str| {
        seen.lock().unwrap().iter().find(|message| *message.id == *id).cloned().unwrap()
    };
    assert_eq!((of(&seen, "a:1"), of(&seen, "b:1")), (large.clone(), small.clone()));
    let reference = of(&passed, "a:1");
    assert!(reference.data.is_empty() && reference.headers.get(CLAIM_BYTES) == Some("1001"));
    let name = reference.extensions.get(DATAREF).unwrap().to_owned();
    assert_eq!(blobs.get(&name).await.unwrap(), Some(large.data.clone()));
    let dead = world.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].headers.get(dead_letter::SUBSCRIPTION), Some("knows-nothing"));
    assert_eq!(dead[0].headers.get(dead_letter::REASON), Some("unclaimed"));
    assert!(dead[0].headers.get(dead_letter::ERROR).unwrap().starts_with("TG0059 body-missing"));

    // A body in whose place another one is, and one that is gone.
    blobs.put(&name, "other".into()).await.unwrap();
    for (id, words) in [("c:1", "has 5 bytes that are not the 1001"), ("c:2", "there is no blob sha256-")] {
        let before = whole.counted().dead;
        let mut message = reference.clone();
        message.id = id.into();
        send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[message]).await;
        eventually("a dead letter", || whole.counted().dead == before + 1).await;
        let dead = world.dead().await;
        let letter = dead.iter().find(|letter| *letter.id == *id).unwrap();
        assert!(letter.headers.get(dead_letter::ERROR).unwrap().contains(words), "{words}");
        assert_eq!(letter.headers.get(CLAIM_BYTES), Some("1001"), "it keeps its reference");
        blobs.purge(i64::MAX).await.unwrap();
    }

    // It is put back, and replayed; or gets another body.
    blobs.put(&name, large.data.clone()).await.unwrap();
    world.replay(|letter| *letter.id == *"c:2").await;
    eventually("it is handled", || seen.lock().unwrap().iter().any(|message| *message.id == *"c:2")).await;
    assert_eq!(of(&seen, "c:2").data, large.data);
    let mut letters = world.letters().await;
    letters.read().await.unwrap().for_each(drop);
    assert_eq!(letters.replay_with("c:1", &Bytes::from("edited")).await.unwrap(), 1);
    letters.close().await.unwrap();
    eventually("it is handled", || seen.lock().unwrap().iter().any(|message| *message.id == *"c:1")).await;
    assert_eq!((&*of(&seen, "c:1").data, of(&seen, "c:1").headers.get(CLAIM_BYTES)), (&b"edited"[..], None));
    drain(whole).await;
}
