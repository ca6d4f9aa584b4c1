//! Service administration for operators. Needs Conclave's registry.

use std::time::Duration;

use conclave_proto::v1::{
    DeregisterRequest, DiscoverRequest, Instance, InstanceFilter, InstanceState,
    InstanceUpdateRequest, ServiceConfigureRequest, ServiceListRequest, ServiceSummary,
    registry_service_client::RegistryServiceClient,
};

use super::Service;
use crate::{client::Client, error::Error};

impl Client {
    /// The services whose names begin with `prefix`, with the numbers of their instances.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn services(&self, prefix: impl Into<String>) -> Result<Vec<ServiceSummary>, Error> {
        let mut request = ServiceListRequest { prefix: prefix.into(), ..Default::default() };
        let mut services = Vec::new();
        loop {
            let call = |channel| {
                let request = request.clone();
                let client = RegistryServiceClient::new(channel);
                async move { client.max_decoding_message_size(usize::MAX).list_services(request).await }
            };
            let mut page = self.read(call).await?;
            services.append(&mut page.services);
            if page.next <= request.from {
                return Ok(services);
            }
            request.from = page.next;
        }
    }
}

impl Service {
    /// The instances that match the filter, by id, at one revision.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resolve(&self, filter: InstanceFilter) -> Result<Vec<Instance>, Error> {
        let mut request = DiscoverRequest {
            service: self.name.clone(),
            filter: Some(filter),
            ..Default::default()
        };
        let mut instances = Vec::new();
        loop {
            let call = |channel| {
                let request = request.clone();
                let client = RegistryServiceClient::new(channel);
                async move { client.max_decoding_message_size(usize::MAX).discover(request).await }
            };
            let mut page = self.client.read(call).await?;
            instances.append(&mut page.instances);
            if page.next <= request.from {
                return Ok(instances);
            }
            (request.from, request.revision) = (page.next, page.revision);
        }
    }

    /// Makes an instance drain whatever its owner reports: it gets no new calls. With a `time`, it
    /// is removed afterwards.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such instance. See [`Error`].
    pub async fn drain(&self, id: impl Into<String>, time: Option<Duration>) -> Result<(), Error> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let drain_ms = Some(time.map_or(0, ms));
        self.overrule(id.into(), InstanceState::Draining, drain_ms).await
    }

    /// Undoes [`Service::drain`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such instance. See [`Error`].
    pub async fn undrain(&self, id: impl Into<String>) -> Result<(), Error> {
        self.overrule(id.into(), InstanceState::Unspecified, None).await
    }

    async fn overrule(
        &self,
        id: String,
        state: InstanceState,
        drain_ms: Option<u64>,
    ) -> Result<(), Error> {
        let request = InstanceUpdateRequest {
            service: self.name.clone(),
            id,
            override_state: state.into(),
            clear_override: state == InstanceState::Unspecified,
            drain_ms,
            ..Default::default()
        };
        let call = |channel| {
            let request = request.clone();
            async move { RegistryServiceClient::new(channel).update(request).await }
        };
        // Not retried after an unknown outcome: an operator may have changed it since.
        self.client.write(call).await.map(drop)
    }

    /// Removes an instance, whether or not this client registered it. Returns whether there was
    /// one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self, id: impl Into<String>) -> Result<bool, Error> {
        let (service, id) = (self.name.clone(), id.into());
        let request = DeregisterRequest { service, id, ..Default::default() };
        let call = |channel| {
            let request = request.clone();
            async move { RegistryServiceClient::new(channel).deregister(request).await }
        };
        // Not retried after an unknown outcome: the id may have been registered again since.
        Ok(self.client.write(call).await?.removed)
    }

    /// Sets the switches of the service: the guard against mass loss, and flap damping. `None`
    /// leaves a switch as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn configure(
        &self,
        guard: Option<bool>,
        damping: Option<bool>,
    ) -> Result<ServiceSummary, Error> {
        let request = ServiceConfigureRequest { service: self.name.clone(), guard, damping };
        let call = |channel| {
            let request = request.clone();
            async move { RegistryServiceClient::new(channel).configure(request).await }
        };
        // Not retried after an unknown outcome: see `overrule`.
        Ok(self.client.write(call).await?.service.unwrap_or_default())
    }
}
