//! The order in which pulls start: the plan's order, stalled registries, unavailable runtimes, credentials that cannot help.

use super::*;
use crate::credentials::docker_config::DockerConfig;
use crate::credentials::keyring::Settings;

const HOUR: Duration = Duration::from_secs(3600);

/// Four images of each of these registries, by name, which is their order in a plan.
fn images(registries: &[&'static str]) -> Vec<&'static str> {
    let names = registries.iter().flat_map(|registry| {
        (1..=4).map(move |n| &*Box::leak(format!("{registry}/{n}").into_boxed_str()))
    });
    names.collect()
}

/// The outcomes of the images of these registries, each with its response, and their start times relative to the first.
async fn begun(
    script: &[(&'static str, Answer)],
    options: &Options<'_>,
) -> (Vec<String>, HashMap<String, Duration>, usize) {
    let answers: Vec<_> = script
        .iter()
        .flat_map(|(registry, answer)| {
            images(&[registry])
                .into_iter()
                .map(|i| (i, [answer.clone()]))
        })
        .collect();
    let script: Vec<_> = answers.iter().map(|(i, a)| (*i, &a[..])).collect();
    let began = Instant::now();
    let (lines, service) = check(&script, options, &CancellationToken::new()).await;
    let attempts = service.attempts.lock().expect("lock");
    let begun = attempts.iter().map(|(i, at)| (i.clone(), at[0] - began));
    (lines, begun.collect(), service.most.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn pulls_start_in_plan_order() {
    for concurrency in [1, 2, 4] {
        let mut options = options();
        options.concurrency = concurrency;
        options.registry_concurrency = concurrency;
        let all = ["a.io", "b.io", "c.io", "d.io"];
        let script = all.map(|registry| (registry, Answer::Pulled));
        let (_, begun, most) = begun(&script, &options).await;
        let times: Vec<_> = images(&all).iter().map(|i| begun[*i]).collect();
        assert!(times.is_sorted(), "{concurrency}: {times:?}");
        assert_eq!(most, concurrency);
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_registries_leave_room_for_others() {
    let hang = |registry| (registry, Answer::Hangs);
    let all = ["a.io", "b.io", "c.io", "d.io", "e.io"];
    for concurrency in [1, 2, 4] {
        for hanging in 1..all.len() {
            let mut options = options();
            options.concurrency = concurrency;
            options.registry_concurrency = concurrency;
            options.pull_timeout = HOUR;
            options.deadline = Some(Instant::now() + HOUR);
            let mut script: Vec<_> = all[..hanging].iter().copied().map(hang).collect();
            script.push((all[hanging], Answer::Pulled));
            let (lines, begun, most) = begun(&script, &options).await;
            let case = format!("{hanging} hang, {concurrency} at once: {lines:?}");
            for image in images(&[all[hanging]]) {
                assert!(lines.contains(&format!("{image} pulled - 1")), "{case}");
                assert!(begun[image] < Duration::from_secs(60), "{case}");
            }
            assert!(
                most <= 2 * concurrency + hanging + 1,
                "{most} at once, {case}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sending_registry_keeps_its_place() {
    let mut options = options();
    options.pull_timeout = HOUR;
    let script = [("a.io", Answer::Trickles(300)), ("b.io", Answer::Pulled)];
    let (_, begun, most) = begun(&script, &options).await;
    assert_eq!(most, 2);
    assert!(begun["b.io/1"] >= Duration::from_secs(600), "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn runtime_outage_spends_one_attempt() {
    for seconds in [10, 30] {
        let all = images(&["a.io", "b.io", "c.io"]);
        let script: Vec<_> = all
            .iter()
            .map(|i| (*i, &[Answer::Trickles(5)][..]))
            .collect();
        let mut options = options();
        options.retries = 1;
        options.concurrency = 4;
        options.registry_concurrency = 4;
        let mut service = scripted(&script, &[]);
        let began = Instant::now();
        service.away =
            Some(began + Duration::from_secs(7)..began + Duration::from_secs(7 + seconds));
        let lines = run(&service, &script, &options, &Keyring::default()).await;
        let lost: Vec<_> = lines.iter().filter(|l| l.contains("failed")).collect();
        assert!(lost.is_empty(), "{seconds} s: {lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn lasting_runtime_outage_ends() {
    let script = [
        ("a.io/1", &[Answer::Pulled][..]),
        ("b.io/1", &[Answer::Pulled]),
    ];
    let mut service = scripted(&script, &[]);
    let began = Instant::now();
    service.away = Some(began..began + HOUR);
    let lines = run(&service, &script, &options(), &Keyring::default()).await;
    assert_eq!(
        lines,
        ["a.io/1 failed unavailable 3", "b.io/1 failed unavailable 3"]
    );
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn arrived_bytes_end_the_credentials() {
    let auths = |user: &str| {
        let json = format!(r#"{{"auths":{{"a.io":{{"username":"{user}","password":"p"}}}}}}"#);
        let config = DockerConfig::parse(user, json.as_bytes());
        config.expect("config").into()
    };
    let keyring = Keyring::new(Settings {
        docker_configs: ["one", "two", "three"].map(auths).into(),
        ..Settings::default()
    });
    let mut options = options();
    options.retries = 0;
    for (answer, pulls) in [
        (Answer::Fails(FailureKind::Other), 4),
        (Answer::Fails(FailureKind::Unauthorized), 4),
        (Answer::Breaks(FailureKind::Other), 1),
        (Answer::Breaks(FailureKind::NotFound), 1),
    ] {
        let answers = [answer];
        let script = [("a.io/1", &answers[..])];
        let service = scripted(&script, &[]);
        run(&service, &script, &options, &keyring).await;
        let attempts = service.attempts.lock().expect("lock");
        assert_eq!(attempts["a.io/1"].len(), pulls);
    }
}
