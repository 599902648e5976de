// An API server on the libraries that kube-apiserver of today is made of (k8s.io/apiserver and k8s.io/apiextensions-apiserver): Debian
// packages those, and not the server itself. Built by ../modern; it is for tests of clients.
//
// HTTP, discovery, storage in etcd, the watch cache, pages, streamed lists, watches, encodings, patches, server-side apply, OpenAPI, custom
// resources, admission webhooks and policies are the real thing. What kube-apiserver adds of its own is not there: validation, most
// defaults, tokens of service accounts, access reviews, logs, exec, proxies, conversion between versions of a group, controllers. RBAC is a
// short one; system:masters may do anything.
package main

import (
	"apiserver/openapi"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	noop "go.opentelemetry.io/otel/trace/noop"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crd "k8s.io/apiextensions-apiserver/pkg/apiserver"
	crdoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/path"
	authorizers "k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	namer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	rbacinformers "k8s.io/client-go/informers/rbac/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
)

// groups are served with every kind that has a list.
var groups = []string{"v1", "admissionregistration.k8s.io/v1", "apps/v1", "autoscaling/v2", "batch/v1", "certificates.k8s.io/v1",
	"coordination.k8s.io/v1", "discovery.k8s.io/v1", "networking.k8s.io/v1", "node.k8s.io/v1", "policy/v1",
	"rbac.authorization.k8s.io/v1", "resource.k8s.io/v1", "scheduling.k8s.io/v1", "storage.k8s.io/v1"}

var clusterScoped = words(`CertificateSigningRequest ClusterRole ClusterRoleBinding CSIDriver CSINode DeviceClass IngressClass
	IPAddress MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration Namespace Node PersistentVolume
	PriorityClass ResourceSlice RuntimeClass ServiceCIDR StorageClass ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
	ValidatingWebhookConfiguration VolumeAttachment VolumeAttributesClass`)

var shortNames = map[string][]string{"pods": {"po"}, "nodes": {"no"}, "namespaces": {"ns"}, "services": {"svc"}, "configmaps": {"cm"},
	"deployments": {"deploy"}, "daemonsets": {"ds"}, "statefulsets": {"sts"}, "replicasets": {"rs"}, "serviceaccounts": {"sa"},
	"events": {"ev"}, "cronjobs": {"cj"}}

// selectable fields besides metadata.name and metadata.namespace.
func selectable(o runtime.Object) fields.Set {
	switch o := o.(type) {
	case *core.Pod:
		return fields.Set{"spec.nodeName": o.Spec.NodeName, "status.phase": string(o.Status.Phase), "spec.restartPolicy": string(o.Spec.RestartPolicy),
			"spec.schedulerName": o.Spec.SchedulerName, "spec.serviceAccountName": o.Spec.ServiceAccountName, "status.podIP": o.Status.PodIP,
			"spec.hostNetwork": fmt.Sprint(o.Spec.HostNetwork), "status.nominatedNodeName": o.Status.NominatedNodeName}
	case *core.Node:
		return fields.Set{"spec.unschedulable": fmt.Sprint(o.Spec.Unschedulable)}
	case *core.Namespace:
		return fields.Set{"status.phase": string(o.Status.Phase)}
	case *core.Secret:
		return fields.Set{"type": string(o.Type)}
	case *core.Event:
		i := o.InvolvedObject
		return fields.Set{"involvedObject.kind": i.Kind, "involvedObject.namespace": i.Namespace, "involvedObject.name": i.Name, "involvedObject.uid": string(i.UID),
			"involvedObject.apiVersion": i.APIVersion, "involvedObject.fieldPath": i.FieldPath, "reason": o.Reason, "type": o.Type, "source": o.Source.Component, "reportingComponent": o.ReportingController}
	}
	return fields.Set{}
}

func attributes(o runtime.Object) (labels.Set, fields.Set, error) {
	m, err := meta.Accessor(o)
	if err != nil {
		return nil, nil, err
	}
	f := selectable(o)
	f["metadata.name"], f["metadata.namespace"] = m.GetName(), m.GetNamespace()
	return m.GetLabels(), f, nil
}

func words(s string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}

// roles allows what RBAC's objects allow, as far as a client's check needs it: verbs, groups, resources, names and paths.
type roles struct{ rbacinformers.Interface }

func has(list []string, s string) bool { return slices.Contains(list, "*") || slices.Contains(list, s) }

func (r roles) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	u := a.GetUser()
	bound := func(subjects []rbac.Subject, ns string) bool {
		return slices.ContainsFunc(subjects, func(s rbac.Subject) bool {
			switch s.Kind {
			case "User":
				return s.Name == u.GetName()
			case "Group":
				return slices.Contains(u.GetGroups(), s.Name)
			}
			return "system:serviceaccount:"+cmp.Or(s.Namespace, ns)+":"+s.Name == u.GetName()
		})
	}
	name := a.GetResource()
	if a.GetSubresource() != "" {
		name += "/" + a.GetSubresource()
	}
	allows := func(rules []rbac.PolicyRule) bool {
		return slices.ContainsFunc(rules, func(p rbac.PolicyRule) bool {
			if !a.IsResourceRequest() {
				return has(p.Verbs, a.GetVerb()) && has(p.NonResourceURLs, a.GetPath())
			}
			return has(p.Verbs, a.GetVerb()) && has(p.APIGroups, a.GetAPIGroup()) && has(p.Resources, name) && (len(p.ResourceNames) == 0 || slices.Contains(p.ResourceNames, a.GetName()))
		})
	}
	cluster := func(ref rbac.RoleRef) bool {
		role, err := r.ClusterRoles().Lister().Get(ref.Name)
		return err == nil && allows(role.Rules)
	}
	all, _ := r.ClusterRoleBindings().Lister().List(labels.Everything())
	for _, b := range all {
		if bound(b.Subjects, "") && cluster(b.RoleRef) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	here, _ := r.RoleBindings().Lister().RoleBindings(a.GetNamespace()).List(labels.Everything())
	for _, b := range here {
		if a.GetNamespace() == "" || !bound(b.Subjects, b.Namespace) {
			continue
		}
		role, err := r.Roles().Lister().Roles(b.Namespace).Get(b.RoleRef.Name)
		if b.RoleRef.Kind == "Role" && err == nil && allows(role.Rules) || b.RoleRef.Kind == "ClusterRole" && cluster(b.RoleRef) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "no role allows it", nil
}

// defaults are those that a kubelet and the controllers of workloads lean on.
func defaults(s *runtime.Scheme) {
	s.AddTypeDefaultingFunc(&core.Pod{}, func(o any) { podDefaults(&o.(*core.Pod).Spec) })
	s.AddTypeDefaultingFunc(&apps.ReplicaSet{}, func(o any) {
		s := &o.(*apps.ReplicaSet).Spec
		set(&s.Replicas, 1)
		podDefaults(&s.Template.Spec)
	})
	s.AddTypeDefaultingFunc(&apps.DaemonSet{}, func(o any) {
		s := &o.(*apps.DaemonSet).Spec
		set(&s.RevisionHistoryLimit, 10)
		podDefaults(&s.Template.Spec)
		if s.UpdateStrategy.Type = cmp.Or(s.UpdateStrategy.Type, apps.RollingUpdateDaemonSetStrategyType); s.UpdateStrategy.Type == apps.RollingUpdateDaemonSetStrategyType {
			set(&s.UpdateStrategy.RollingUpdate, apps.RollingUpdateDaemonSet{})
			set(&s.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
			set(&s.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
		}
	})
	s.AddTypeDefaultingFunc(&apps.Deployment{}, func(o any) {
		s := &o.(*apps.Deployment).Spec
		set(&s.Replicas, 1)
		set(&s.RevisionHistoryLimit, 10)
		set(&s.ProgressDeadlineSeconds, 600)
		podDefaults(&s.Template.Spec)
		if s.Strategy.Type = cmp.Or(s.Strategy.Type, apps.RollingUpdateDeploymentStrategyType); s.Strategy.Type == apps.RollingUpdateDeploymentStrategyType {
			set(&s.Strategy.RollingUpdate, apps.RollingUpdateDeployment{})
			set(&s.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
			set(&s.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
		}
	})
}

func set[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

func podDefaults(s *core.PodSpec) {
	s.RestartPolicy = cmp.Or(s.RestartPolicy, core.RestartPolicyAlways)
	s.DNSPolicy = cmp.Or(s.DNSPolicy, core.DNSClusterFirst)
	s.SchedulerName = cmp.Or(s.SchedulerName, core.DefaultSchedulerName)
	set(&s.TerminationGracePeriodSeconds, 30)
	set(&s.EnableServiceLinks, true)
	set(&s.SecurityContext, core.PodSecurityContext{})
	for _, cs := range [][]core.Container{s.InitContainers, s.Containers} {
		for i := range cs {
			c := &cs[i]
			c.TerminationMessagePath = cmp.Or(c.TerminationMessagePath, core.TerminationMessagePathDefault)
			c.TerminationMessagePolicy = cmp.Or(c.TerminationMessagePolicy, core.TerminationMessageReadFile)
			base := c.Image[strings.LastIndex(c.Image, "/")+1:]
			if c.ImagePullPolicy == "" && !strings.Contains(base, "@") && (!strings.Contains(base, ":") || strings.HasSuffix(base, ":latest")) {
				c.ImagePullPolicy = core.PullAlways
			}
			c.ImagePullPolicy = cmp.Or(c.ImagePullPolicy, core.PullIfNotPresent)
			for j := range c.Ports {
				c.Ports[j].Protocol = cmp.Or(c.Ports[j].Protocol, core.ProtocolTCP)
			}
		}
	}
	for i := range s.Volumes {
		switch v := &s.Volumes[i]; {
		case v.HostPath != nil:
			set(&v.HostPath.Type, core.HostPathUnset)
		case v.Secret != nil:
			set(&v.Secret.DefaultMode, 0o644)
		case v.ConfigMap != nil:
			set(&v.ConfigMap.DefaultMode, 0o644)
		case v.DownwardAPI != nil:
			set(&v.DownwardAPI.DefaultMode, 0o644)
		case v.Projected != nil:
			set(&v.Projected.DefaultMode, 0o644)
		}
	}
}

// strategy keeps status and the rest of an object apart, as the server's many strategies do.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	namespaced, status bool
}

func part(o runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(o).Elem().FieldByName(name)
}

func (s strategy) NamespaceScoped() bool          { return s.namespaced }
func (s strategy) AllowCreateOnUpdate() bool      { return false }
func (s strategy) AllowUnconditionalUpdate() bool { return true }
func (s strategy) Canonicalize(runtime.Object)    {}
func (s strategy) PrepareForCreate(_ context.Context, o runtime.Object) {
	if f := part(o, "Status"); f.IsValid() {
		f.SetZero()
	}
	m, _ := meta.Accessor(o)
	if part(o, "Spec").IsValid() {
		m.SetGeneration(1)
	}
	switch o := o.(type) {
	case *core.Pod:
		o.Status.Phase = core.PodPending
	case *core.Namespace:
		o.Status.Phase = core.NamespaceActive
	}
}
func (s strategy) PrepareForUpdate(_ context.Context, o, old runtime.Object) {
	keep := "Status"
	if s.status {
		keep = "Spec"
	}
	if f := part(o, keep); f.IsValid() {
		f.Set(part(old, keep))
	}
	if f := part(o, "Spec"); f.IsValid() {
		m, _ := meta.Accessor(o)
		was, _ := meta.Accessor(old)
		m.SetGeneration(was.GetGeneration())
		if !reflect.DeepEqual(f.Interface(), part(old, "Spec").Interface()) {
			m.SetGeneration(was.GetGeneration() + 1)
		}
	}
}
func (strategy) Validate(context.Context, runtime.Object) field.ErrorList { return nil }
func (strategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}
func (strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// resource is one kind's storage; the embedded store does the work.
type resource struct {
	*registry.Store
	short []string
}

func (r resource) ShortNames() []string { return r.short }

// table adds what kubectl's user looks for first.
type table struct{ rest.TableConvertor }

func (t table) ConvertToTable(c context.Context, o, opts runtime.Object) (*metav1.Table, error) {
	out, err := t.TableConvertor.ConvertToTable(c, o, opts)
	if err != nil {
		return nil, err
	}
	for i := range out.Rows {
		heads, cells := columns(out.Rows[i].Object.Object)
		if i == 0 {
			for _, h := range heads {
				out.ColumnDefinitions = append(out.ColumnDefinitions, metav1.TableColumnDefinition{Name: h, Type: "string"})
			}
		}
		out.Rows[i].Cells = append(out.Rows[i].Cells, cells...)
	}
	return out, nil
}

func columns(o runtime.Object) ([]string, []any) {
	switch o := o.(type) {
	case *core.Pod:
		status, ready, restarts := string(o.Status.Phase), 0, int32(0)
		for _, c := range append(slices.Clone(o.Status.InitContainerStatuses), o.Status.ContainerStatuses...) {
			if w := c.State.Waiting; w != nil {
				status = cmp.Or(w.Reason, status)
			}
			restarts += c.RestartCount
		}
		for _, c := range o.Status.ContainerStatuses {
			if c.Ready {
				ready++
			}
		}
		return []string{"Ready", "Status", "Restarts", "IP", "Node"}, []any{fmt.Sprintf("%d/%d", ready, len(o.Spec.Containers)), status, restarts, o.Status.PodIP, o.Spec.NodeName}
	case *core.Node:
		status := "NotReady"
		for _, c := range o.Status.Conditions {
			if c.Type == core.NodeReady && c.Status == core.ConditionTrue {
				status = "Ready"
			}
		}
		return []string{"Status", "Version", "Runtime"}, []any{status, o.Status.NodeInfo.KubeletVersion, o.Status.NodeInfo.ContainerRuntimeVersion}
	case *apps.DaemonSet:
		return []string{"Desired", "Ready"}, []any{o.Status.DesiredNumberScheduled, o.Status.NumberReady}
	case *apps.Deployment:
		return []string{"Ready"}, []any{fmt.Sprintf("%d/%d", o.Status.ReadyReplicas, *o.Spec.Replicas)}
	case *core.Event:
		return []string{"Reason", "Object", "Message"}, []any{o.Reason, o.InvolvedObject.Kind + "/" + o.InvolvedObject.Name, o.Message}
	}
	return nil, nil
}

// statusOf is the subresource status.
type statusOf struct{ store *registry.Store }

func (s statusOf) New() runtime.Object { return s.store.New() }
func (s statusOf) Destroy()            {}
func (s statusOf) Get(c context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(c, name, o)
}
func (s statusOf) Update(c context.Context, name string, i rest.UpdatedObjectInfo, vc rest.ValidateObjectFunc, vu rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.store.Update(c, name, i, vc, vu, false, o)
}
func (s statusOf) ConvertToTable(c context.Context, o, t runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(c, o, t)
}

// creation is a subresource that takes one object: a pod's binding or eviction.
type creation struct {
	kind  schema.GroupVersionKind
	empty func() runtime.Object
	do    func(context.Context, string, runtime.Object) error
}

func (c creation) New() runtime.Object                                          { return c.empty() }
func (c creation) Destroy()                                                     {}
func (c creation) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind { return c.kind }
func (c creation) Create(ctx context.Context, name string, o runtime.Object, _ rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	return &metav1.Status{Status: metav1.StatusSuccess}, c.do(ctx, name, o)
}

// scale is the subresource of what has spec.replicas.
type scale struct{ store *registry.Store }

func (s scale) New() runtime.Object { return &autoscaling.Scale{} }
func (s scale) Destroy()            {}
func (s scale) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return autoscaling.SchemeGroupVersion.WithKind("Scale")
}
func (s scale) Get(c context.Context, name string, opts *metav1.GetOptions) (runtime.Object, error) {
	o, err := s.store.Get(c, name, opts)
	if err != nil {
		return nil, err
	}
	m, _ := meta.Accessor(o)
	out := &autoscaling.Scale{ObjectMeta: metav1.ObjectMeta{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUID(), ResourceVersion: m.GetResourceVersion(), CreationTimestamp: m.GetCreationTimestamp()}}
	if n, ok := part(o, "Spec").FieldByName("Replicas").Interface().(*int32); ok && n != nil {
		out.Spec.Replicas = *n
	}
	return out, nil
}
func (s scale) Update(c context.Context, name string, i rest.UpdatedObjectInfo, _ rest.ValidateObjectFunc, _ rest.ValidateObjectUpdateFunc, _ bool, opts *metav1.UpdateOptions) (runtime.Object, bool, error) {
	_, _, err := s.store.Update(c, name, rest.DefaultUpdatedObjectInfo(nil, func(c context.Context, _, old runtime.Object) (runtime.Object, error) {
		o := old.DeepCopyObject()
		was, err := s.Get(c, name, &metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		want, err := i.UpdatedObject(c, was)
		if err != nil {
			return nil, err
		}
		n := want.(*autoscaling.Scale).Spec.Replicas
		part(o, "Spec").FieldByName("Replicas").Set(reflect.ValueOf(&n))
		return o, nil
	}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, opts)
	if err != nil {
		return nil, false, err
	}
	o, err := s.Get(c, name, &metav1.GetOptions{})
	return o, false, err
}

// kinds registers a group version's kinds as the internal ones too, so that nothing is ever converted, and yields them.
func kinds(s *runtime.Scheme, gv schema.GroupVersion) []string {
	var out []string
	known := s.KnownTypes(gv)
	for kind, t := range known {
		if t.PkgPath() == "k8s.io/apimachinery/pkg/apis/meta/v1" {
			continue
		}
		s.AddKnownTypeWithName(schema.GroupVersionKind{Group: gv.Group, Version: runtime.APIVersionInternal, Kind: kind}, reflect.New(t).Interface().(runtime.Object))
		if _, ok := known[kind+"List"]; ok && kind != "ComponentStatus" {
			out = append(out, kind)
			gvk, sel := gv.WithKind(kind), selectable(reflect.New(t).Interface().(runtime.Object))
			s.AddFieldLabelConversionFunc(gvk, func(label, value string) (string, string, error) {
				if _, ok := sel[label]; ok || label == "metadata.name" || label == "metadata.namespace" {
					return label, value, nil
				}
				return "", "", fmt.Errorf("field label not supported: %s", label)
			})
		}
	}
	return out
}

func install(s *server.GenericAPIServer, sch *runtime.Scheme, codecs serializer.CodecFactory, gv schema.GroupVersion, kinds []string, getter generic.RESTOptionsGetter) error {
	known, served := sch.KnownTypes(gv), map[string]rest.Storage{}
	for _, kind := range kinds {
		plural, _ := meta.UnsafeGuessKindToResource(gv.WithKind(kind))
		name, one, list := plural.Resource, known[kind], known[kind+"List"]
		if kind == "Endpoints" {
			name = "endpoints"
		}
		st := strategy{ObjectTyper: sch, NameGenerator: names.SimpleNameGenerator, namespaced: !clusterScoped[kind]}
		gr := schema.GroupResource{Group: gv.Group, Resource: name}
		store := &registry.Store{
			NewFunc:                   func() runtime.Object { return reflect.New(one).Interface().(runtime.Object) },
			NewListFunc:               func() runtime.Object { return reflect.New(list).Interface().(runtime.Object) },
			DefaultQualifiedResource:  gr,
			SingularQualifiedResource: schema.GroupResource{Group: gv.Group, Resource: strings.ToLower(kind)},
			CreateStrategy:            st, UpdateStrategy: st, DeleteStrategy: st,
			TableConvertor: table{rest.NewDefaultTableConvertor(gr)},
		}
		if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter, AttrFunc: attributes}); err != nil {
			return err
		}
		served[name] = resource{store, shortNames[name]}
		if _, ok := one.FieldByName("Status"); ok {
			status, st := *store, st
			st.status = true
			status.UpdateStrategy = st
			served[name+"/status"] = statusOf{&status}
		}
		if spec, ok := one.FieldByName("Spec"); ok && spec.Type.Kind() == reflect.Struct {
			if f, ok := spec.Type.FieldByName("Replicas"); ok && f.Type == reflect.TypeOf((*int32)(nil)) {
				served[name+"/scale"] = scale{store}
			}
		}
		if kind == "Pod" {
			served["pods/binding"] = creation{core.SchemeGroupVersion.WithKind("Binding"), func() runtime.Object { return &core.Binding{} }, func(c context.Context, name string, o runtime.Object) error {
				_, _, err := store.Update(c, name, rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, p runtime.Object) (runtime.Object, error) {
					pod := p.DeepCopyObject().(*core.Pod)
					if pod.Spec.NodeName != "" {
						return nil, apierrors.NewConflict(gr, name, fmt.Errorf("pod is already on %s", pod.Spec.NodeName))
					}
					pod.Spec.NodeName = o.(*core.Binding).Target.Name
					return pod, nil
				}), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
				return err
			}}
			served["pods/eviction"] = creation{policy.SchemeGroupVersion.WithKind("Eviction"), func() runtime.Object { return &policy.Eviction{} }, func(c context.Context, name string, _ runtime.Object) error {
				_, _, err := store.Delete(c, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{})
				return err
			}}
		}
	}
	info := server.NewDefaultAPIGroupInfo(gv.Group, sch, runtime.NewParameterCodec(sch), codecs)
	info.PrioritizedVersions = []schema.GroupVersion{gv}
	info.VersionedResourcesStorageMap[gv.Version] = served
	if gv.Group == "" {
		return s.InstallLegacyAPIGroup("/api", &info)
	}
	return s.InstallAPIGroup(&info)
}

func run(ctx context.Context, o *options.ServerRunOptions, etcd *options.EtcdOptions, serving *options.SecureServingOptionsWithLoopback, features *options.FeatureOptions, admission *options.AdmissionOptions, tokens string) error {
	sch := scheme.Scheme
	var gvs []schema.GroupVersion
	all := map[schema.GroupVersion][]string{}
	for _, g := range groups {
		gv, err := schema.ParseGroupVersion(g)
		if err != nil {
			return err
		}
		gvs, all[gv] = append(gvs, gv), kinds(sch, gv)
	}
	defaults(sch)
	codecs := serializer.NewCodecFactory(sch)
	protobuf, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	etcd.StorageConfig.Codec = codecs.CodecForVersions(protobuf.Serializer, codecs.UniversalDeserializer(), schema.GroupVersions(gvs), runtime.InternalGroupVersioner)

	config := server.NewRecommendedConfig(codecs)
	if err := o.Complete(); err != nil {
		return err
	}
	if err := o.ApplyTo(&config.Config); err != nil {
		return err
	}
	if err := serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		return err
	}
	if err := serving.ApplyToConfig(&config.Config); err != nil {
		return err
	}
	if err := etcd.ApplyTo(&config.Config); err != nil {
		return err
	}
	authn := []authenticator.Request{}
	if tokens != "" {
		t, err := tokenfile.NewCSV(tokens)
		if err != nil {
			return err
		}
		authn = append(authn, bearertoken.New(t))
	}
	config.Authentication.Authenticator = union.NewFailOnError(append(authn, anonymous.NewAuthenticator(nil))...)
	config.OpenAPIConfig = server.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer.NewDefinitionNamer(sch, crd.Scheme))
	config.OpenAPIV3Config = server.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer.NewDefinitionNamer(sch, crd.Scheme))
	config.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	loopback, err := kubernetes.NewForConfig(config.LoopbackClientConfig)
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(config.LoopbackClientConfig)
	if err != nil {
		return err
	}
	config.ClientConfig, config.SharedInformerFactory = config.LoopbackClientConfig, informers.NewSharedInformerFactory(loopback, 10*time.Minute)
	rbac := config.SharedInformerFactory.Rbac().V1()
	// asking for an informer makes the factory start it
	_, _, _, _ = rbac.ClusterRoles().Informer(), rbac.ClusterRoleBindings().Informer(), rbac.Roles().Informer(), rbac.RoleBindings().Informer()
	open, err := path.NewAuthorizer([]string{"/healthz", "/livez", "/readyz", "/version"})
	if err != nil {
		return err
	}
	config.Authorization.Authorizer = authorizers.New(authorizerfactory.NewPrivilegedGroups("system:masters"), open, roles{rbac})
	if err := features.ApplyTo(&config.Config, loopback, config.SharedInformerFactory); err != nil {
		return err
	}
	if err := admission.ApplyTo(&config.Config, config.SharedInformerFactory, loopback, objects, utilfeature.DefaultFeatureGate, config.EffectiveVersion); err != nil {
		return err
	}

	// custom resources are served by their own server, which the core passes on to what it does not know
	custom, customEtcd := *config, *etcd
	custom.PostStartHooks = map[string]server.PostStartHookConfigEntry{}
	custom.Serializer = crd.Codecs
	customEtcd.StorageConfig.Codec = crd.Codecs.LegacyCodec(crdv1.SchemeGroupVersion)
	customEtcd.SkipHealthEndpoints = true
	if err := customEtcd.ApplyTo(&custom.Config); err != nil {
		return err
	}
	custom.MergedResourceConfig = crd.DefaultAPIResourceConfigSource()
	crds, err := (&crd.Config{GenericConfig: &custom, ExtraConfig: crd.ExtraConfig{
		CRDRESTOptionsGetter: crdoptions.NewCRDRESTOptionsGetter(*etcd, custom.ResourceTransformers, custom.StorageObjectCountTracker),
		ServiceResolver:      webhook.NewDefaultServiceResolver(),
		AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, config.LoopbackClientConfig, noop.NewTracerProvider()),
	}}).Complete().New(server.NewEmptyDelegate())
	if err != nil {
		return err
	}
	api, err := config.Complete().New("apiserver", crds.GenericAPIServer)
	if err != nil {
		return err
	}
	for _, gv := range gvs {
		if err := install(api, sch, codecs, gv, all[gv], config.RESTOptionsGetter); err != nil {
			return err
		}
	}
	// the list of groups that older clients ask for, with those of the custom resources
	listed := func(any) {
		all, _ := crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister().List(labels.Everything())
		byGroup := map[string]metav1.APIGroup{crdv1.GroupName: {Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: crdv1.SchemeGroupVersion.String(), Version: "v1"}}}}
		for _, c := range all {
			g := byGroup[c.Spec.Group]
			for _, v := range c.Spec.Versions {
				if gv := (metav1.GroupVersionForDiscovery{GroupVersion: c.Spec.Group + "/" + v.Name, Version: v.Name}); v.Served && !slices.Contains(g.Versions, gv) {
					g.Versions = append(g.Versions, gv)
				}
			}
			byGroup[c.Spec.Group] = g
		}
		for name, g := range byGroup {
			if g.Name = name; len(g.Versions) > 0 {
				g.PreferredVersion = g.Versions[0]
				api.DiscoveryGroupManager.AddGroup(g)
			}
		}
	}
	listed(nil)
	crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: listed, UpdateFunc: func(_, o any) { listed(o) }, DeleteFunc: listed})
	api.AddPostStartHookOrDie("namespaces", func(h server.PostStartHookContext) error {
		for _, n := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
			if _, err := loopback.CoreV1().Namespaces().Create(h, &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return err
			}
		}
		return nil
	})
	return api.PrepareRun().RunWithContext(ctx)
}

func main() {
	ctx := server.SetupSignalContext()
	general, serving := options.NewServerRunOptions(), options.NewSecureServingOptions().WithLoopback()
	etcd := options.NewEtcdOptions(storagebackend.NewDefaultConfig("/registry", nil))
	features, admission, tokens := options.NewFeatureOptions(), options.NewAdmissionOptions(), ""
	features.EnablePriorityAndFairness = false
	cmd := &cobra.Command{Use: "apiserver", SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		return run(ctx, general, etcd, serving, features, admission, tokens)
	}}
	f := cmd.Flags()
	general.AddUniversalFlags(f)
	etcd.AddFlags(f)
	serving.AddFlags(f)
	features.AddFlags(f)
	admission.AddFlags(f)
	f.StringVar(&tokens, "token-auth-file", "", "who may come in: lines of token,user,uid,\"group,...\"")
	os.Exit(cli.Run(cmd))
}
