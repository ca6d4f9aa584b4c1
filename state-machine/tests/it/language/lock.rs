//! Words about sessions, locks and elections.

use bytes::Bytes;
use conclave_state_machine::command::{
    Campaign, Leave, LockAcquire, LockConvert, LockRelease, SessionBegin,
};

use super::primitive;
use super::words::{Parsed, Words, bytes, number};

pub(super) fn session(words: &mut Words) -> Parsed<SessionBegin> {
    let mut begin = SessionBegin {
        id: words.number()?,
        ttl: words.number()?,
        request_id: bytes(&words.next()?),
        ..SessionBegin::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "owner" => begin.owner = value,
            _ => begin.metadata.push((option, value)),
        }
    }
    Ok(begin)
}

pub(super) fn names(word: &str) -> Vec<Bytes> {
    word.split(',').map(bytes).collect()
}

pub(super) fn acquire(words: &mut Words) -> Parsed<LockAcquire> {
    let mut acquire = LockAcquire {
        names: names(&words.next()?),
        session: words.number()?,
        request_id: bytes(&words.next()?),
        permits: 1,
        limit: 1,
        can_wait: true,
        ..LockAcquire::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "shared" => acquire.limit = u32::MAX,
            "permits" => acquire.permits = number(&value)?,
            "limit" => acquire.limit = number(&value)?,
            "try" => acquire.can_wait = false,
            "again" => acquire.is_reentrant = true,
            "delay" => acquire.delay_seconds = number(&value)?,
            "attempt" => acquire.attempt = number(&value)?,
            "by" => acquire.once = primitive::once(&value)?,
            _ => return Err(format!("unknown option {option:?} of lock")),
        }
    }
    Ok(acquire)
}

pub(super) fn release(words: &mut Words) -> Parsed<LockRelease> {
    let mut release = LockRelease {
        names: names(&words.next()?),
        session: words.number()?,
        request_id: bytes(&words.next()?),
        ..LockRelease::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "attempt" => release.attempt = number(&value)?,
            "by" => release.once = primitive::once(&value)?,
            _ => return Err(format!("unknown option {option:?} of unlock")),
        }
    }
    Ok(release)
}

pub(super) fn convert(words: &mut Words) -> Parsed<LockConvert> {
    let mut convert = LockConvert {
        name: bytes(&words.next()?),
        session: words.number()?,
        request_id: bytes(&words.next()?),
        permits: number(&words.next()?)?,
        limit: number(&words.next()?)?,
        ..LockConvert::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "by" => convert.once = primitive::once(&value)?,
            _ => return Err(format!("unknown option {option:?} of convert")),
        }
    }
    Ok(convert)
}

pub(super) fn campaign(words: &mut Words) -> Parsed<Campaign> {
    let mut campaign = Campaign {
        name: bytes(&words.next()?),
        session: words.number()?,
        value: bytes(&words.next()?),
        ..Campaign::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "attempt" => campaign.attempt = number(&value)?,
            "number" => campaign.number = number(&value)?,
            "by" => campaign.once = primitive::once(&value)?,
            "resumes" => campaign.resumes = true,
            _ => return Err(format!("unknown option {option:?} of campaign")),
        }
    }
    Ok(campaign)
}

pub(super) fn leave(words: &mut Words) -> Parsed<Leave> {
    let mut leave = Leave {
        name: bytes(&words.next()?),
        session: words.number()?,
        fence: words.number()?,
        ..Leave::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "attempt" => leave.attempt = number(&value)?,
            "by" => leave.once = primitive::once(&value)?,
            _ => return Err(format!("unknown option {option:?} of leave")),
        }
    }
    Ok(leave)
}
