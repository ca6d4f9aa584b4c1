//! Lock administration for operators.

use conclave_proto::v1::{
    ForceReleaseRequest, HeldLock, InspectRequest, InspectResponse, LockListRequest, LockSummary,
    lock_service_client::LockServiceClient,
};

use crate::{client::Client, error::Error};

impl Client {
    /// The locks whose names begin with `prefix`, with the numbers of holders and waiters.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn locks(&self, prefix: impl Into<Vec<u8>>) -> Result<Vec<LockSummary>, Error> {
        let namespace = self.namespace();
        let mut request = LockListRequest { prefix: namespace.name(prefix), ..Default::default() };
        let mut locks: Vec<LockSummary> = Vec::new();
        loop {
            let call = |channel| {
                let request = request.clone();
                let client = LockServiceClient::new(channel);
                async move { client.max_decoding_message_size(usize::MAX).list(request).await }
            };
            let page = self.read(call).await?;
            locks.extend(page.locks);
            if page.next <= request.from {
                locks.sort_by(|a, b| a.name.cmp(&b.name));
                locks.dedup_by(|a, b| a.name == b.name);
                locks.iter_mut().for_each(|lock| namespace.strip(&mut lock.name));
                return Ok(locks);
            }
            request.from = page.next;
        }
    }

    /// Who holds a lock and who waits for it, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lock_inspect(&self, name: impl Into<Vec<u8>>) -> Result<InspectResponse, Error> {
        let request = InspectRequest { name: self.namespace().name(name) };
        let call = |channel| {
            let request = request.clone();
            let client = LockServiceClient::new(channel);
            async move { client.max_decoding_message_size(usize::MAX).inspect(request).await }
        };
        self.read(call).await
    }

    /// Takes a lock away from the holder or waiter with this `fence`, or from all holders if it is
    /// 0. The members log it with `reason`. Returns what was taken away.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says whether it may have happened.
    pub async fn lock_break(
        &self,
        name: impl Into<Vec<u8>>,
        fence: i64,
        reason: impl Into<String>,
    ) -> Result<Vec<HeldLock>, Error> {
        let name = self.namespace().name(name);
        let request = ForceReleaseRequest { name, fence, reason: reason.into() };
        let call = |channel| {
            let request = request.clone();
            async move { LockServiceClient::new(channel).force_release(request).await }
        };
        let mut released = self.write(call).await?.released;
        released.iter_mut().for_each(|lock| self.namespace().strip(&mut lock.name));
        Ok(released)
    }
}
